"""Cost on paper: parameters, MACs, FLOPs, activations and bytes of a model."""
