"""A random permutation that is the same in every run and on every machine."""

import torch
from torch import Tensor


def fixed_permutation(count: int) -> Tensor:
    """Return the numbers from 0 to `count` - 1 in a random order that depends only on `count`.

    This is `numpy.random.RandomState(0).permutation(count)`, which numpy guarantees never to
    change. It does not depend on any seed. The result is an int64 tensor on the CPU.
    """
    if torch.jit.is_scripting():
        return torch.ops.zoo.fixed_permutation(count)
    else:
        # The permutation of a symbolic size is known only when the program runs.
        if torch.compiler.is_dynamo_compiling() or isinstance(count, torch.SymInt):
            return fixed_permutation_op(count)
        return _fixed_permutation(count)


def _fixed_permutation(count: int) -> Tensor:
    import numpy as np

    return torch.tensor(np.random.RandomState(0).permutation(int(count)).tolist())  # noqa: NPY002


@torch.library.custom_op("zoo::fixed_permutation", mutates_args=())
def fixed_permutation_op(count: int) -> Tensor:
    """`fixed_permutation` as an operator, for compiled and exported programs."""
    return _fixed_permutation(count)


@fixed_permutation_op.register_fake
def _(count):
    return torch.empty(count, dtype=torch.int64)
