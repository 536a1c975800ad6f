"""Files and processes: the standard library and torch.distributed, no images and no graphs."""
