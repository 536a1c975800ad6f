"""Drop-ins for TokenCut, MaskCut, Deep Spectral Segmentation and Selfment's own code.

A program changes one line, the import; in Selfment's code the import replaces the definition of a
function. See :mod:`selfment.compat.tokencut`, :mod:`selfment.compat.maskcut`,
:mod:`selfment.compat.dsm` and :mod:`selfment.compat.selfment`.

Results differ from the original code's by rounding: it applies the threshold to float32
similarities, selfment to float64 similarities of rows rounded to float32. An eigenvector has the
sign that ``scipy.linalg.eigh`` returns, on which MaskCut's masks depend. Two more things differ:

- The seed is the first of the entries whose magnitudes differ by less than 1e-7 of the largest.
- With ``no_binary_graph=True`` and ``tau=0``, pairs with a similarity of exactly 0 get eps, not 0,
  so that a patch without features has a degree.
"""
