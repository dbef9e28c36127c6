"""Position tables in a file of static size: resampled once, before the export.

Runtimes resample differently: OpenVINO without the blur of PyTorch's antialiasing, ExecuTorch not
bicubically at all.
"""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.positions import PositionEmbedding


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of `model` whose tables fit images like `x`; without tables, the model.

    A table that one call reads at two sizes stays as it is.
    """
    if not any(isinstance(module, PositionEmbedding) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    tables = [module for module in model.modules() if isinstance(module, PositionEmbedding)]
    requested: list[set[Any]] = [set() for _ in tables]
    hooks = [
        table.register_forward_pre_hook(functools.partial(_note, sizes))
        for table, sizes in zip(tables, requested, strict=True)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for table, sizes in zip(tables, requested, strict=True):
        if len(sizes) == 1:
            (size,) = sizes
            with torch.no_grad():
                table.table = nn.Parameter(table(*size), requires_grad=False)
            table.grid = size
    return model


def _note(sizes: set[Any], module: nn.Module, given: tuple[int, int]) -> None:
    sizes.add(given)
