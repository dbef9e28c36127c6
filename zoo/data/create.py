"""`create_datamodule`: from a configuration to the loaders of its data set."""

from collections.abc import Sequence
from typing import Any

from zoo.data import presets
from zoo.data.datamodule import ImageData
from zoo.data.denoising import DenoisingData
from zoo.data.detection import DetectionData
from zoo.data.multilabel import MultiLabelData
from zoo.data.retrieval import RetrievalData
from zoo.data.segmentation import SegmentationData
from zoo.data.superres import SuperResolutionData
from zoo.errors import BadInput
from zoo.settings import DataConfig

_KINDS: tuple[type[ImageData], ...] = (
    ImageData, SegmentationData, SuperResolutionData, DenoisingData, DetectionData, RetrievalData,
    MultiLabelData,
)  # fmt: skip
_DATAMODULES = {data.task: data for data in _KINDS}


def create_datamodule(
    cfg: Any,
    *,
    batch_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    channel_order: str | None = None,
    seed: int = 0,
    eval_batch_size: int | None = None,
) -> ImageData:
    """Return the loaders of a data set; nothing is read before `setup`.

    Each of `mean`, `std`, `interpolation`, `crop_pct` and `channel_order` is what the model
    expects, and is used where `cfg` says null.

    Args:
        cfg: A `DataConfig`, a `DictConfig` or a dictionary with its keys.
        batch_size: Images per process and training step.
        mean: One number per channel, for pixel values in 0..1.
        std: One number per channel, for pixel values in 0..1.
        interpolation: How evaluation images are resized.
        crop_pct: Share of the resized image that the evaluation crop keeps.
        channel_order: `"RGB"` or `"BGR"`, the order of the colours and of `mean` and `std`.
        seed: Determines order and augmentation, together with the epoch and the image's index.
        eval_batch_size: Images per process and evaluation step; None: `batch_size`.

    Raises:
        BadInput: An argument or a key of `cfg` is invalid or has no effect.
    """
    model = {"mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct}
    model["channel_order"] = channel_order
    resolved = presets.resolve(cfg, model)
    for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
        if value is not None and value < 1:
            raise BadInput(f"{name}={value} must be at least 1")
    _check_memory(resolved, max(batch_size, eval_batch_size or 1))
    datamodule = _DATAMODULES[presets.task(resolved.name)]
    return datamodule(resolved, batch_size, eval_batch_size or batch_size, seed)


def _check_memory(cfg: DataConfig, batch_size: int) -> None:
    """Raise `BadInput` for a batch whose images alone no machine can be expected to hold."""
    height, width = presets.size_of(cfg.image_size)
    size = 4 * cfg.in_chans * height * width * batch_size
    if size > presets.LARGEST_BATCH:
        raise BadInput(
            f"a batch of {batch_size} images of data.image_size={[height, width]} takes"
            f" {size / 2**30:.0f} GiB; lower data.image_size or the batch size"
        )
