"""Smaller and faster models: int8 artefacts, calibrated and evaluated on real images."""
