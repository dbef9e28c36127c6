"""Smaller and faster models: int8 after training, quantisation-aware training."""
