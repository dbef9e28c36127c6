"""What programs that leave the size open compute instead of what depends on the size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.blocks.positions import LearnedPositionEmbedding, blur
from zoo.blocks.sizes import contiguous_if_dynamic, is_dynamic, is_size
from zoo.models.skipblocknet import cells, pool_like
from zoo.models.tinyvit import from_windows, to_windows

AUTO = torch.export.Dim.AUTO


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(14, 11), (4, 4), (7, 20), (1, 1), (28, 3)])
def test_matrices_blur_as_pytorch_does(mode, size):
    x = torch.randn(2, 3, 14, 11, dtype=torch.float64)
    want = F.interpolate(x, size, mode=mode, align_corners=False, antialias=True)
    have = blur(x, size[0], mode, 2) @ x @ blur(x, size[1], mode, 3).T
    torch.testing.assert_close(have, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(14, 11), (7, 5), (3, 4), (1, 1), (13, 20)])
def test_matrices_pool_as_pytorch_does(size):
    x = torch.randn(2, 3, 14, 11, dtype=torch.float64)
    have = cells(x, size[0], 2) @ x @ cells(x, size[1], 3).T
    torch.testing.assert_close(have, F.adaptive_avg_pool2d(x, size), rtol=0, atol=1e-13)


SAID = []


class Answers(nn.Module):
    """Notes what is said of sizes while a program is made."""

    def forward(self, x):
        height, width = x.shape[2], x.shape[3]
        turned = x.transpose(2, 3)
        kept = contiguous_if_dynamic(turned, height) is turned
        SAID[:] = [is_dynamic(height), is_size(height, width, (8, 8)), kept]
        return x + 1


def test_an_open_size_is_none():
    x = torch.zeros(1, 1, 8, 8)
    model = Answers()
    model(x)
    assert SAID == [False, True, True]
    torch.export.export(model, (x,))
    assert SAID == [False, True, True]
    program = torch.export.export(model, (x,), dynamic_shapes=({2: AUTO, 3: AUTO},))
    assert SAID == [True, False, False]
    program.module()(torch.zeros(1, 1, 9, 3))


class Everything(nn.Module):
    """A table, windows and a pool on maps of any size."""

    def __init__(self):
        super().__init__()
        self.table = LearnedPositionEmbedding(4, (8, 8), mode="bicubic", antialias=True)

    def forward(self, x):
        batch, channels, height, width = x.shape
        y = x.permute(0, 2, 3, 1) + self.table(height, width).view(1, height, width, channels)
        windows = to_windows(y, 4)
        mixed = windows + windows.mean(1, keepdim=True)
        z = from_windows(mixed, 4, batch, height, width).permute(0, 3, 1, 2)
        half = z[:, :, ::2, ::2]
        return half + pool_like(z, half, 2)


def test_one_program_is_right_for_every_size():
    torch.manual_seed(0)
    model = Everything().double()
    x = torch.randn(1, 4, 12, 20, dtype=torch.float64)
    from torch.fx.experimental import _config as switches

    before, switches.backed_size_oblivious = switches.backed_size_oblivious, True
    try:
        program = torch.export.export(model, (x,), dynamic_shapes=({2: AUTO, 3: AUTO},)).module()
    finally:
        switches.backed_size_oblivious = before
    # The table's own size, one window, none to pad, odd sides.
    for size in ((8, 8), (4, 4), (16, 12), (7, 5), (33, 6)):
        y = torch.randn(1, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(program(y), model(y), rtol=0, atol=1e-12)
