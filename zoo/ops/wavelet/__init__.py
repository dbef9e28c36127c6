"""The two-dimensional Haar wavelet transform, in plain PyTorch and compiled by Numba."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import BadInput, unknown_value
from zoo.ops.scan.operator import installed
from zoo.ops.wavelet import operator, plain

BACKENDS = ("auto", "plain", "numba")
BANDS = ("LL", "LH", "HL", "HH")  # first letter: along the width; second: along the height


def haar(x: Tensor, backend: str = "auto") -> Tensor:
    """Compute the four Haar bands (wavelet db1) of each feature map.

    The transform is orthonormal: it preserves the sum of squares, and `inverse_haar` inverts it.
    The order of the bands is LL, LH, HL, HH. The first letter is the filter along the width, the
    second the filter along the height; a high band is the first pixel minus the second. Odd sides
    are padded with zeros on the right or at the bottom.

    Flattening channels and bands puts band k of channel c at channel 4c + k.

    Args:
        x: Feature maps, ... x H x W, any floating-point dtype.
        backend: `"plain"` uses PyTorch's operators; `"numba"` runs one compiled loop on the CPU and
            needs the extra `fast`. `"auto"` uses Numba if it supports the tensor and no graph is
            being traced, and PyTorch otherwise.

    Returns:
        ... x 4 x ceil(H/2) x ceil(W/2).

    Raises:
        BadInput: The backend is unknown, is not installed, or does not support this tensor.
    """
    return _haar(x, backend)


def inverse_haar(
    bands: Tensor, height: int | None = None, width: int | None = None, backend: str = "auto"
) -> Tensor:
    """Reconstruct feature maps from their four Haar bands, as the inverse of `haar`.

    Args:
        bands: ... x 4 x h x w in the order LL, LH, HL, HH, any floating-point dtype.
        height: Height of the result: 2h, or 2h - 1 to remove the padding of `haar`. None means 2h.
        width: Width of the result: 2w or 2w - 1. None means 2w.
        backend: As for `haar`.

    Returns:
        ... x height x width.

    Raises:
        BadInput: The backend is unknown, is not installed, or does not support this tensor.
    """
    x = _inverse_haar(bands, backend)
    if height is not None:
        x = x[..., :height, :]
    return x if width is None else x[..., :width]


def haar_pyramid(x: Tensor, levels: int, backend: str = "auto") -> list[Tensor]:
    """Apply `haar` to feature maps, then repeatedly to the LL band of the previous level.

    Args:
        x: Feature maps, ... x H x W.
        levels: Number of levels.
        backend: As for `haar`.

    Returns:
        All four bands of each level, the largest level first.
    """
    pyramid: list[Tensor] = []
    for _ in range(levels):
        bands = haar(x, backend)
        pyramid.append(bands)
        x = bands.select(-3, 0)
    return pyramid


def _haar(x: Tensor, backend: str) -> Tensor:
    return plain.haar(x) if torch.jit.is_scripting() else _eager_haar(x, backend)


def _inverse_haar(bands: Tensor, backend: str) -> Tensor:
    return (
        plain.inverse_haar(bands)
        if torch.jit.is_scripting()
        else _eager_inverse_haar(bands, backend)
    )


# torch.fx must not trace into these functions: they depend on dtypes and sizes.
torch.fx.wrap("_haar")
torch.fx.wrap("_inverse_haar")


def _eager_haar(x: Tensor, backend: str) -> Tensor:
    if not _use_numba(x, backend):
        return plain.haar(x)
    bottom, right = x.shape[-2] % 2, x.shape[-1] % 2
    return operator.haar_op(F.pad(x, [0, right, 0, bottom]) if bottom or right else x)


def _eager_inverse_haar(bands: Tensor, backend: str) -> Tensor:
    if not _use_numba(bands, backend):
        return plain.inverse_haar(bands)
    return operator.inverse_haar_op(bands)


def auto_backend(device: str | torch.device = "cpu") -> str:
    """Return the backend that `"auto"` uses on `device` in single or double precision."""
    return "numba" if torch.device(device).type == "cpu" and installed("numba") else "plain"


def _use_numba(x: Tensor, backend: str) -> bool:
    """Return whether to run the Numba backend on `x`."""
    if backend == "plain":
        return False
    supported = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if backend == "auto":
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        return supported and not traced and auto_backend(x.device) == "numba"
    if backend != "numba":
        raise BadInput(unknown_value("backend", backend, BACKENDS))
    if not installed("numba"):
        raise BadInput(
            "backend='numba' is not installed; run pip install 'zoo-vision[fast]', or use 'auto'"
        )
    if not supported:
        raise BadInput(
            f"backend='numba' supports float32 and float64 on the CPU, not {x.dtype} on {x.device};"
            " use 'auto'"
        )
    return True
