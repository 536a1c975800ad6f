"""The words that options allow.

They repeat constants of the package, so that the help of a command appears without the second that
it takes to import torch. A test compares both.
"""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16")
FEATURES = ("tokens", "keys")
POSITIONS = ("authors", "timm")
METHODS = (
    *("selfment", "selfment-kmeans", "selfment-cls", "tokencut", "maskcut", "dsm", "selfmask"),
    "found",
)
FORMATS = ("png", "coco", "yolo", "yolo-seg", "fiedler")
OUTPUTS = ("tar", "parquet", "files")
REFINEMENTS = ("bilateral", "guided", "crf")
PROTOCOLS = ("paper", "pysod", "tokencut", "all")
