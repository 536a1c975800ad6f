"""The numbers of labels, as the records of images have them."""

from __future__ import annotations

import math

from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..util.lines import Record

Result = PseudoLabels | Objects


def statistics(result: Result) -> Record:
    """The fields of a record with the numbers of a label; None where one is not finite."""
    if isinstance(result, Objects):
        return {
            "objects": len(result.masks),
            "eigenvalues": result.eigenvalues.tolist(),
            "separations": result.separations.tolist(),
            "foreground": float((result.instances > 0).float().mean()),
        }
    record: Record = {}
    for name in ("eigenvalue", "gap", "residual", "separation", "confidence", "tau"):
        value = float(getattr(result, name))
        record[name] = value if math.isfinite(value) else None
    for name in ("lanczos_iters", "ipo_iters"):
        record[name] = int(getattr(result, name))
    record["rejected"] = bool(result.rejected)
    record["foreground"] = float(result.mask.float().mean())
    return record
