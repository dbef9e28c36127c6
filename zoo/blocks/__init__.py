"""Parts that models are built from, one idea a file.

A block that has a cheaper equal form says so in `fused()`, which returns the replacement and leaves
the block itself as it was; `zoo.reparameterize` calls it (see zoo/reparam.py).
"""
