"""The tensors that all backends of the selective scan take."""

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Inputs of a selective scan, or their gradients, with one floating-point dtype on one device.

    Attributes:
        u: Input, B D L.
        delta: Step sizes before bias and softplus, B D L.
        A: Decay rates, D N.
        B: Input weights, B G N L.
        C: Output weights, B G N L.
        D: Skip weights, D.
        bias: Bias of the step sizes, D.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
