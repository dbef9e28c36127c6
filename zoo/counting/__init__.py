"""Static cost of a model: parameters, MACs, FLOPs, activations and memory traffic."""
