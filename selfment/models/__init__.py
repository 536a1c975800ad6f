"""From an image to a result, with a backbone: pseudo-labels, or the saliency of a trained head."""
