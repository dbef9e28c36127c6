"""Measured cost of a model: latency, layer times, memory and energy, for one or many models."""
