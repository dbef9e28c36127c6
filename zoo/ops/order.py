"""A random order that is always the same."""

import torch
from torch import Tensor


def fixed_order(count: int) -> Tensor:
    """Return the numbers from 0 to `count` - 1 in a random order that depends on `count` alone.

    It is `numpy.random.RandomState(0).permutation(count)`, a stream that numpy keeps for good: the
    same on every machine, whatever seeds are set. On the CPU, of int64.
    """
    if torch.jit.is_scripting():
        return torch.ops.zoo.fixed_order(count)
    else:  # a scripted function may hold Python of any kind in the branch that it never takes
        # A symbol has no value: its order is not known before the program runs.
        if torch.compiler.is_dynamo_compiling() or isinstance(count, torch.SymInt):
            return fixed_order_op(count)
        return _fixed_order(count)


def _fixed_order(count: int) -> Tensor:
    import numpy as np

    return torch.tensor(np.random.RandomState(0).permutation(int(count)).tolist())  # noqa: NPY002


@torch.library.custom_op("zoo::fixed_order", mutates_args=())
def fixed_order_op(count: int) -> Tensor:
    """`fixed_order` as an operator, for programs."""
    return _fixed_order(count)


@fixed_order_op.register_fake
def _(count):
    return torch.empty(count, dtype=torch.int64)
