"""Structured pruning to a measured latency."""
