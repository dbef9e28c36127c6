"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leave out the residual branch of whole samples while training (arXiv 1603.09382).

    A kept branch is divided by the probability of being kept, so that its expectation stays.

    Args:
        rate: Probability of leaving a sample's branch out, in [0, 1).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * mask.bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def linear_rates(last: float, depths: list[int] | tuple[int, ...]) -> list[list[float]]:
    """Return a drop-path rate for each block of each stage, growing linearly from 0 to `last`."""
    total = sum(depths)
    rates = [last * k / max(total - 1, 1) for k in range(total)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]
