"""The two-dimensional Haar wavelet transform: one meaning, in plain PyTorch and compiled."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import BadInput
from zoo.ops.scan.operator import installed
from zoo.ops.wavelet import operator, plain
from zoo.ops.wavelet.complex import dual_tree as dual_tree
from zoo.ops.wavelet.complex import inverse_dual_tree as inverse_dual_tree

FORMS = ("auto", "plain", "numba")
BANDS = ("LL", "LH", "HL", "HH")  # along the width, then along the height


def haar(x: Tensor, backend: str = "auto") -> Tensor:
    """Split each map into its four Haar bands (wavelet db1), each of half the size.

    The transform is orthonormal: it keeps the sum of squares, and `inverse_haar` undoes it. Bands
    stand in the order LL, LH, HL, HH: the first letter is for the width, the second for the height;
    high is the first pixel minus the second. A side that is odd is completed with zeros on the
    right or below.

    Flattening channels and bands gives channel 4c + k for band k of channel c.

    Args:
        x: Maps, ... x H x W, of any floating type.
        backend: `"numba"` makes one pass on a CPU (extra `fast`), `"plain"` is of PyTorch's own
            operators. `"auto"` takes the first where it can and no graph is being recorded.

    Returns:
        ... x 4 x ceil(H/2) x ceil(W/2).

    Raises:
        BadInput: An unknown form, or one that cannot run on this tensor.
    """
    return _haar(x, backend)


def inverse_haar(
    bands: Tensor, height: int | None = None, width: int | None = None, backend: str = "auto"
) -> Tensor:
    """Put maps together from their four Haar bands: the inverse of `haar`.

    Args:
        bands: ... x 4 x h x w in the order LL, LH, HL, HH, of any floating type.
        height: Rows to keep, 2h or, of a side that was completed, 2h - 1; by default all.
        width: Columns to keep.
        backend: As for `haar`.

    Returns:
        ... x height x width.

    Raises:
        BadInput: An unknown form, or one that cannot run on this tensor.
    """
    x = _inverse_haar(bands, backend)
    if height is not None:
        x = x[..., :height, :]
    return x if width is None else x[..., :width]


def haar_pyramid(x: Tensor, levels: int, backend: str = "auto") -> list[Tensor]:
    """Apply `haar` to a map, then to its LL band, and so on.

    Args:
        x: Maps, ... x H x W.
        levels: How many times.
        backend: As for `haar`.

    Returns:
        The bands of each level, all four, the largest first.
    """
    pyramid: list[Tensor] = []
    for _ in range(levels):
        bands = haar(x, backend)
        pyramid.append(bands)
        x = bands.select(-3, 0)
    return pyramid


def inverse_haar_pyramid(
    pyramid: Sequence[Tensor],
    height: int | None = None,
    width: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Put maps together from a pyramid: the inverse of `haar_pyramid`.

    Args:
        pyramid: Bands of each level, the largest first. LL is read at the last level alone; those
            of the others follow from it.
        height: Rows to keep, as for `inverse_haar`; by default all.
        width: Columns to keep.
        backend: As for `haar`.

    Returns:
        ... x height x width.
    """
    bands = pyramid[-1]
    for larger in pyramid[-2::-1]:
        low = inverse_haar(bands, larger.shape[-2], larger.shape[-1], backend)
        bands = torch.cat([low.unsqueeze(-3), larger[..., 1:, :, :]], dim=-3)
    return inverse_haar(bands, height, width, backend)


# A scripted function may hold Python of any kind in the branch that it never takes.
def _haar(x: Tensor, backend: str) -> Tensor:
    return plain.haar(x) if torch.jit.is_scripting() else _fastest_haar(x, backend)


def _inverse_haar(bands: Tensor, backend: str) -> Tensor:
    return (
        plain.inverse_haar(bands) if torch.jit.is_scripting() else _fastest_inverse(bands, backend)
    )


# Leaves for symbolic tracing: they look at types and sizes.
torch.fx.wrap("_haar")
torch.fx.wrap("_inverse_haar")


def _fastest_haar(x: Tensor, backend: str) -> Tensor:
    if not _is_compiled(x, backend):
        return plain.haar(x)
    bottom, right = x.shape[-2] % 2, x.shape[-1] % 2
    return operator.haar_op(F.pad(x, [0, right, 0, bottom]) if bottom or right else x)


def _fastest_inverse(bands: Tensor, backend: str) -> Tensor:
    if not _is_compiled(bands, backend):
        return plain.inverse_haar(bands)
    return operator.inverse_haar_op(bands)


def running(device: str | torch.device = "cpu") -> str:
    """Return the form that `backend="auto"` takes on `device` in single or double precision."""
    return "numba" if torch.device(device).type == "cpu" and installed("numba") else "plain"


def _is_compiled(x: Tensor, backend: str) -> bool:
    """Say whether the compiled form is to run on `x`."""
    if backend == "plain":
        return False
    able = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if backend == "auto":
        recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
        return able and not recorded and running(x.device) == "numba"
    if backend != "numba":
        raise BadInput(f"backend={backend!r}: there are {', '.join(FORMS)}")
    if not installed("numba"):
        raise BadInput("backend='numba' is not installed: pip install 'zoo-vision[fast]'")
    if not able:
        raise BadInput(
            f"backend='numba' runs on float32 and float64 on a CPU, not on {x.dtype} on {x.device}"
        )
    return True
