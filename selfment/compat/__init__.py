"""Drop-ins for TokenCut, MaskCut, Deep Spectral Segmentation and Selfment's own code.

One line changes, the import; see :mod:`selfment.compat.tokencut`, :mod:`selfment.compat.maskcut`,
:mod:`selfment.compat.dsm` and :mod:`selfment.compat.selfment`.

Results differ from theirs by rounding: they threshold float32 similarities, selfment float64 ones
of rows rounded to float32. Besides, three things are fixed here:

- The sign of an eigenvector, which LAPACK picks: here the entry of largest magnitude is positive.
  MaskCut's corner rule depends on it.
- Entries whose magnitudes differ by less than 1e-7 of the largest count as equal where the seed
  is chosen, and the first of them is taken.
- With ``no_binary_graph=True`` and ``tau=0``, pairs with a similarity of exactly 0 get eps, not 0,
  so that a patch without features has a degree.
"""
