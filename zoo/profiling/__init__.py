"""Cost on a machine: latency, layers, memory, energy, sweeps over models."""
