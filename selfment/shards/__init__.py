"""Labels and saliency of images in shards: tar files, tables and folders on any file system."""
