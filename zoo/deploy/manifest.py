"""The file beside an artefact that says all that is needed to run it, and how it was checked."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import registry
from zoo.deploy.files import SCHEMA, sha256
from zoo.deploy.spec import Settings
from zoo.errors import BadInput
from zoo.inputs import KEYS, input_of


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as it is known.

    Attributes:
        name: Its name for `zoo.create_model`.
        args: The other arguments of `zoo.create_model`.
        weights: The file that its weights were read from.
        class_names: What each logit stands for, in order.
        preprocessing: `size`, `mean`, `std`, `interpolation`, `crop_pct` that it was trained with;
            what is missing is as published for `name`.
        data: The group `data` of the run that it was trained in.
    """

    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    class_names: Sequence[str] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None


# Which images a data set gives to evaluate on; how they are prepared stands under `input`.
DATA = (
    "name", "root", "train_split_name", "val_split_name", "val_split", "input_key", "target_key",
    "num_classes", "class_names", "palette", "val_images", "skip_corrupt",
)  # fmt: skip


def describe_model(model: nn.Module, origin: Origin, fused: bool) -> dict[str, Any]:
    """Return the entries of a manifest that tell of the model and its weights."""
    file = origin.weights
    return {
        "model": {
            "name": origin.name,
            "args": origin.args,
            "class": type(model).__name__,
            "num_classes": getattr(model, "num_classes", None),
            "fused": fused,
        },
        "weights": {
            "file": None if file is None else file.name,
            "sha256": None if file is None else sha256(file),
            "state_sha256": state_sha256(model),
        },
        "task": task_of(model, origin),
        "class_names": None if origin.class_names is None else list(origin.class_names),
        "data": _data(origin),
    }


def _data(origin: Origin) -> dict[str, Any] | None:
    given = origin.data or {}
    known = {key: given[key] for key in DATA if given.get(key) is not None}
    return known if "name" in known else None


def describe_input(
    model: nn.Module,
    origin: Origin,
    name: str,
    settings: Settings,
    pixels: bool,
    multiple: int | None,
) -> dict[str, Any]:
    """Return what has to be fed: name, shape, type, and how a picture becomes that.

    Args:
        model: What is exported.
        origin: Where it comes from.
        name: Of the input.
        settings: Its shape, and which axes are open.
        pixels: Whether it takes bytes, so that `mean` and `std` are none of the caller's business.
        multiple: With an open size, what its sides must be a multiple of.
    """
    known = preprocessing_of(model, origin)
    shape = [settings.open_axes.get(i, n) for i, n in enumerate(settings.input_size)]
    return {
        "name": name,
        "shape": shape,
        "size": list(settings.input_size[1:]),
        **({} if multiple is None else {"multiple": multiple}),
        "layout": "NCHW" if len(shape) == 4 else "NCDHW",
        "dtype": "uint8" if pixels else "float32",
        "channels": {1: "grey", 3: "RGB"}.get(settings.input_size[1]),
        "range": [0, 255] if pixels else [0.0, 1.0],  # of the values that mean and std belong to
        "mean": None if pixels else known["mean"],
        "std": None if pixels else known["std"],
        "normalised_inside": {"mean": known["mean"], "std": known["std"]} if pixels else None,
        "interpolation": known["interpolation"],
        "crop_pct": known["crop_pct"],
        "resize": {"segmentation": "fit", "classification": "crop"}.get(task_of(model, origin)),
    }


def preprocessing_of(model: nn.Module, origin: Origin) -> dict[str, Any]:
    """Return size, mean, std, interpolation and crop: those trained with, else as published."""
    known = input_of(model, origin.name)
    known |= {key: origin.preprocessing[key] for key in KEYS if key in origin.preprocessing}
    return known


def task_of(model: nn.Module, origin: Origin) -> str:
    """Return what a model is for; one from elsewhere is taken to classify."""
    name = origin.name
    if name is None or registry.is_timm(name):
        return "classification"
    return registry.get_spec(name).task


def check_classes(model: nn.Module, origin: Origin) -> None:
    """Raise `BadInput` unless there is one class name for each logit, or none at all."""
    count = getattr(model, "num_classes", None)
    if origin.class_names is not None and count is not None and len(origin.class_names) != count:
        raise BadInput(
            f"{len(origin.class_names)} class names were given for a model with {count} classes"
        )


def write(content: dict[str, Any], file: Path) -> None:
    """Write a manifest; the keys stand in the order in which they were given."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"schema": SCHEMA, **content, "date": date}, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def state_sha256(model: nn.Module) -> str:
    """Return the sha256 of a state dict: names, types, shapes and bytes, in alphabetical order."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
