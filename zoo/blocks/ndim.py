"""Layers for one, two or three spatial axes."""

from typing import Any

from torch import nn

from zoo.errors import BadInput

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_RESIZINGS = ("linear", "bilinear", "trilinear")


def check_axes(axes: int) -> int:
    """Return `axes`, or raise `BadInput` unless it is 1, 2 or 3."""
    if axes not in (1, 2, 3) or isinstance(axes, bool):
        raise BadInput(f"spatial_dims={axes!r}: must be 1, 2 or 3")
    return axes


def conv(
    axes: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    dilation: int = 1,
    **settings: Any,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Return a convolution over `axes` spatial axes that keeps their sizes (before the stride)."""
    kind = _CONVS[check_axes(axes) - 1]
    padding = dilation * (kernel_size // 2)
    return kind(
        in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, **settings
    )


def max_pool(axes: int, size: int) -> nn.Module:
    """Return max pooling over windows of `size` along each axis that do not overlap."""
    return _MAX_POOLS[check_axes(axes) - 1](size)


def channel_dropout(axes: int, rate: float) -> nn.Module:
    """Return dropout of whole channels with probability `rate`."""
    return _DROPOUTS[check_axes(axes) - 1](rate)


def upsample(axes: int, factor: int) -> nn.Module:
    """Return linear interpolation to `factor` times the size, corners not aligned."""
    mode = _RESIZINGS[check_axes(axes) - 1]
    return nn.Upsample(scale_factor=float(factor), mode=mode, align_corners=False)
