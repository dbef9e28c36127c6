"""The data that an int8 artefact is calibrated and evaluated on."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from zoo.blocks.sizes import pair
from zoo.config import ExportRun
from zoo.data import DataConfig, create_datamodule
from zoo.errors import BadInput
from zoo.exporters.manifest import Origin, own_preparation
from zoo.training import overrides as command_line
from zoo.training.parts import check_forward
from zoo.training.tasks import check_task

BATCH = 64  # images per evaluation batch
PREPARED = ("mean", "std", "interpolation", "crop_pct")


def open_data(
    cfg: DictConfig,
    overrides: Sequence[str],
    model: nn.Module,
    origin: Origin,
    shape: tuple[int, ...],
) -> Any:
    """Open the data set that was requested, or the one that the model was trained on.

    Args:
        cfg: The configuration of `export.py`.
        overrides: The keys that were set.
        model: In evaluation mode.
        origin: Where the weights come from; a run records its data and how images are prepared.
        shape: B C H W of the artefact.

    Raises:
        BadInput: The data is for another task, or has other classes, channels or sizes.
    """
    name = str(origin.name)
    asked = command_line.asked(cfg, overrides, ExportRun)
    settings = _settings(cfg, asked, origin)
    _fit_input(settings, asked, name, shape)
    prepared = own_preparation(model, origin)
    data = create_datamodule(settings, batch_size=BATCH, **{key: prepared[key] for key in PREPARED})
    check_task(name, data)
    data.setup("validate")
    known = getattr(model, "num_classes", None)
    if data.task != "super-resolution" and known not in (None, data.num_classes):
        raise BadInput(
            f"{name} knows {known} classes, the data {settings.name} has {data.num_classes}; give "
            f"data=<what it was trained on>, or model.num_classes={data.num_classes} for fresh "
            "weights"
        )
    check_forward(model, name, data)
    return data


def _settings(cfg: DictConfig, asked: dict[str, Any], origin: Origin) -> DictConfig:
    """Return the group `data`: what was requested, else what the run of the weights records."""
    own, named = origin.data, asked.get("data.name")
    same = own is not None and named in (None, own["name"])
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), own if same else cfg.data)
    assert isinstance(merged, DictConfig)
    for key, value in asked.items():
        if key.startswith("data."):
            OmegaConf.update(merged, key.removeprefix("data."), value, merge=False)
    return merged


def _fit_input(
    settings: DictConfig, asked: dict[str, Any], name: str, shape: tuple[int, ...]
) -> None:
    """Set the size and the channels of the images to those of the artefact."""
    _, channels, *sides = shape
    if len(sides) != 2:
        raise BadInput(
            f"{name} takes volumes, and no data set provides them; call "
            "zoo.quantization.quantize with your own batches"
        )
    wanted = asked.get("data.image_size")
    if wanted is not None and list(pair(wanted, "data.image_size")) != sides:
        raise BadInput(
            f"data.image_size={wanted}: the artefact takes {sides[0]}x{sides[1]}; give "
            "export.image_size instead"
        )
    if asked.get("data.in_chans", channels) != channels:
        raise BadInput(
            f"data.in_chans={asked['data.in_chans']}: {name} takes {channels}; leave it out"
        )
    settings.image_size, settings.in_chans = sides, channels
