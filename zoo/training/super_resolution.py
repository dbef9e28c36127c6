"""The task of enlarging an image to twice its size, next to bicubic interpolation."""

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from zoo.training.image_outputs import ImageTask


class SuperResolution(ImageTask):
    """Enlarges an image to twice its size."""

    name: ClassVar[str] = "super-resolution"
    simple: ClassVar[str] = "bicubic"
    words: ClassVar[str] = "bicubic interpolation"

    def describe_output(self, data: Any) -> str:
        return f"{data.num_classes} channels at twice the size"

    def apply(self, images: Tensor) -> Tensor:
        """Interpolate."""
        return bicubic(images)


def bicubic(images: Tensor) -> Tensor:
    """Enlarge images with values in 0..1 to twice their size, with Keys' kernel for a = -0.5.

    The literature and image editors use this kernel. PyTorch uses it only with `antialias=True`,
    which has no other effect on an enlargement, and a = -0.75 otherwise.
    """
    return F.interpolate(images, scale_factor=2, mode="bicubic", antialias=True)


TASK = SuperResolution()
