"""Losses and weights that are not finite: the error, and what to do."""

from zoo.data.datamodule import ImageData
from zoo.errors import ZooError
from zoo.training.tasks import sample_validation

LARGEST_PIXEL = 1e4  # of normalised images; beyond it, the normalisation is wrong


class Diverged(ZooError):
    """The loss or a weight is NaN or infinite."""


def advice_on_divergence(data: ImageData) -> str:
    """Return what to do about numbers that are not finite."""
    images, _ = sample_validation(data, 1)
    largest = float(images.abs().max())
    if not largest < LARGEST_PIXEL:
        return (
            f"Normalised pixels are as large as {largest:.3g}: check data.mean={data.mean} and"
            f" data.std={data.std}, which are for values in 0..1"
        )
    return "Try a lower train.lr, train.clip_grad=1 or train.precision=32"
