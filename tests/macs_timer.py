"""A timer for tests: the latency of a model is its MACs, a million in a millisecond."""

from collections.abc import Sequence

import torch
from torch import nn

from zoo.profiling.results import Comparison
from zoo.profiling.stats import summarize


def macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Return the multiplications of convolutions and linear layers (zoo.count takes longer)."""
    total = 0

    def add(layer, arguments, y) -> None:
        nonlocal total
        total += y.numel() * layer.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(tuple(input_size)))
    for handle in handles:
        handle.remove()
    return total


class MacsTimer:
    """Counts instead of measuring.

    Args:
        offset: Added to the ratio of every comparison.
    """

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.calls: list[str] = []

    def ms(self, model: nn.Module, input_size: Sequence[int]) -> float:
        self.calls.append("ms")
        return macs(model, input_size) / 1e6

    def compare(self, before: nn.Module, after: nn.Module, input_size: Sequence[int]) -> Comparison:
        self.calls.append("compare")
        a, b = (macs(side, input_size) / 1e6 for side in (before, after))
        ratio = b / a + self.offset
        return Comparison(ratio, ratio, ratio, 6, *(summarize([ms] * 6) for ms in (a, b)))
