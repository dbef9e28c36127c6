"""Position tables of artefacts with a static size: resampled once, before export.

Runtimes resample differently: OpenVINO without the blur of PyTorch's antialiasing, ExecuTorch not
bicubically at all.
"""

import copy
import functools

import torch
from torch import Tensor, nn

from zoo.blocks.positions import PositionEmbedding


def resample_tables(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of `model` with its position tables resampled for images like `x`.

    A table that one call reads at two sizes is left unchanged. A model without tables is returned
    unchanged.

    Args:
        model: The model, in evaluation mode.
        x: B C H W; only its shape matters.
    """
    if not any(isinstance(module, PositionEmbedding) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    tables = [module for module in model.modules() if isinstance(module, PositionEmbedding)]
    grids: list[set[tuple[int, int]]] = [set() for _ in tables]  # grids at which each table is read
    hooks = [
        table.register_forward_pre_hook(functools.partial(_record, read_at))
        for table, read_at in zip(tables, grids, strict=True)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for table, read_at in zip(tables, grids, strict=True):
        if len(read_at) == 1:
            (grid,) = read_at
            with torch.no_grad():
                table.table = nn.Parameter(table(*grid), requires_grad=False)
            table.grid = grid
    return model


def _record(grids: set[tuple[int, int]], module: nn.Module, grid: tuple[int, int]) -> None:
    grids.add(grid)
