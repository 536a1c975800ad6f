"""Labels and saliency of images in shards: tar files, tables and folders on any file system."""

from __future__ import annotations

from .run import ShardSummary, label_shards, predict_shards

__all__ = ["ShardSummary", "label_shards", "predict_shards"]
