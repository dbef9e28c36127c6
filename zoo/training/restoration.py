"""The task of restoring a noisy image, next to bilateral filtering."""

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.training.image_outputs import ImageTask

# The best for the validation images of `photos_denoising`; a test searches around them.
COLOUR_SIGMA, SPACE_SIGMA = 0.31, 2.5  # values in 0..1 over all channels; pixels
RADIUS = 4  # pixels


class Restoration(ImageTask):
    """Removes noise from an image."""

    name: ClassVar[str] = "restoration"
    simple: ClassVar[str] = "bilateral"
    words: ClassVar[str] = "bilateral filtering"

    def describe_output(self, data: Any) -> str:
        return f"{data.num_classes} channels without noise"

    def apply(self, images: Tensor) -> Tensor:
        """Filter."""
        return bilateral(images)


def bilateral(
    images: Tensor, colour_sigma: float = COLOUR_SIGMA, space_sigma: float = SPACE_SIGMA
) -> Tensor:
    """Return each pixel's mean over its surroundings, weighted by distance in space and in colour.

    Tomasi and Manduchi, "Bilateral Filtering for Gray and Color Images" (ICCV 1998), with Gaussian
    weights and mirrored borders.

    Args:
        images: Values in 0..1, N C H W.
        colour_sigma: Of the Euclidean distance of two colours.
        space_sigma: Of the distance of two pixels, in pixels.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (RADIUS,) * 4, mode="reflect")
    total = torch.zeros_like(images)
    weights = torch.zeros_like(images[:, :1])
    for y, x in itertools.product(range(2 * RADIUS + 1), repeat=2):
        shifted = padded[:, :, y : y + height, x : x + width]
        space = ((y - RADIUS) ** 2 + (x - RADIUS) ** 2) / space_sigma**2
        colour = ((shifted - images) ** 2).sum(dim=1, keepdim=True) / colour_sigma**2
        weight = torch.exp(-(space + colour) / 2)
        total += weight * shifted
        weights += weight
    return total / weights


TASK = Restoration()
