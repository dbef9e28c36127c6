"""Expressions that do not depend on the images are computed once."""

import torch
import torch.nn.functional as F
from torch import nn

from zoo.deploy import constants


class Positions(nn.Module):
    """Adds a resampled table to its input; a second output adds it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 4, 4))
        self.scale = nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x):
        table = F.interpolate(self.table, x.shape[2:], mode="bicubic")
        return x * self.scale + table, x + 2 * table


def operators(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_a_resampled_table_becomes_a_constant():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 5)
    program = torch.export.export(Positions(), (x,))
    folded = constants.fold(program)
    assert any("bicubic" in name for name in operators(program))
    assert sorted(operators(folded)) == ["aten.add.Tensor"] * 2 + ["aten.mul.Tensor"]
    for want, have in zip(program.module()(x), folded.module()(x), strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=0)


def test_a_program_without_constants_is_unchanged():
    program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.randn(1, 3, 8, 8),))
    assert operators(constants.fold(program)) == operators(program)
