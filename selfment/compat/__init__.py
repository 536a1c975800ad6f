"""Drop-ins for TokenCut, MaskCut, Deep Spectral Segmentation and Selfment's own code.

One line changes, the import, which in Selfment's code takes the place of a function; see
:mod:`selfment.compat.tokencut`, :mod:`selfment.compat.maskcut`, :mod:`selfment.compat.dsm` and
:mod:`selfment.compat.selfment`.

Results differ from theirs by rounding: they threshold float32 similarities, selfment float64 ones
of rows rounded to float32. An eigenvector has the sign that ``scipy.linalg.eigh`` gives it, on
which MaskCut's masks depend. Besides, two things are fixed here:

- Entries whose magnitudes differ by less than 1e-7 of the largest count as equal where the seed
  is chosen, and the first of them is taken.
- With ``no_binary_graph=True`` and ``tau=0``, pairs with a similarity of exactly 0 get eps, not 0,
  so that a patch without features has a degree.
"""
