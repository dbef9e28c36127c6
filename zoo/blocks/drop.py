"""Stochastic depth: the rate of each block. The module is `timm.layers.DropPath`."""

from collections.abc import Sequence
from typing import Any

from timm.layers import calculate_drop_path_rates


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the rate of each block of each stage; it grows linearly from 0 to `last`."""
    rates: Any = calculate_drop_path_rates(last, list(depths), stagewise=True)
    return rates
