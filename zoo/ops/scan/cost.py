"""What a selective scan costs, for `zoo.count` and for PyTorch's FlopCounterMode.

The convention of the field, used by Mamba, VMamba and EfficientVMamba (state-spaces/mamba, issue
110), is 9 FLOPs for each state of each channel at each step, and 1 for the skip. It counts the
recurrence as published, whatever form computes it; bias, softplus and gate are not part of it. They
are FLOPs that no matrix product is behind, so a scan has no multiply-accumulates (MACs).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from zoo.ops.scan import operator as operator  # defines the operators

FORWARD, SKIP = 9, 1
# The backward pass, as its formulas read (zoo/ops/scan/cpu.py): decay and state again 5, the
# adjoint 3, gradients of B and C 2 each, of the input 2, of step and decay rate 5; and the skip's.
BACKWARD, SKIP_BACKWARD = 19, 4


def flops(u: Sequence[int], A: Sequence[int]) -> int:
    """Return the FLOPs of a scan over u of shape B D L with decay rates of shape D N."""
    batch, channels, length = u
    return batch * channels * length * (FORWARD * A[1] + SKIP)


@register_flop_formula(torch.ops.zoo.selective_scan)
def _forward(u: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:
    return flops(u, A)


@register_flop_formula(torch.ops.zoo.selective_scan_backward)
def _backward(dy: Any, u: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:
    batch, channels, length = u
    return batch * channels * length * (BACKWARD * A[1] + SKIP_BACKWARD)
