"""growkit grows neural networks."""
