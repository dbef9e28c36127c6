"""The FLOPs of a selective scan, for `zoo.count` and for PyTorch's FlopCounterMode.

Mamba, VMamba and EfficientVMamba (state-spaces/mamba, issue 110) count 9 FLOPs per state, channel
and step, plus 1 per channel and step for the skip. This is the cost of the published recurrence,
independent of the algorithm that computes it, without bias, softplus and gate. A scan has no matrix
product, so its multiply-accumulates (MACs) are 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from zoo.ops.scan import operator as operator  # registers the operators

FORWARD, SKIP = 9, 1
# The backward pass by its formulas (zoo/ops/scan/cpu.py): 5 to recompute decay and state, 3 for the
# adjoint, 2 each for the gradients of B, C and the input, 5 for those of step and decay rate.
BACKWARD, SKIP_BACKWARD = 19, 4


def flops(u: Sequence[int], A: Sequence[int]) -> int:
    """Return the FLOPs of a scan, given the shapes of u (B D L) and A (D N)."""
    batch, channels, length = u
    return batch * channels * length * (FORWARD * A[1] + SKIP)


@register_flop_formula(torch.ops.zoo.selective_scan)
def _forward(u: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:
    return flops(u, A)


@register_flop_formula(torch.ops.zoo.selective_scan_backward)
def _backward(dy: Any, u: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:
    batch, channels, length = u
    return batch * channels * length * (BACKWARD * A[1] + SKIP_BACKWARD)
