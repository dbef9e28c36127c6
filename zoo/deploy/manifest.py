"""The manifest next to an artefact: how to feed it, where it comes from, how it was verified."""

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
from zoo.data import presets
from zoo.deploy import schema
from zoo.deploy.files import sha256
from zoo.deploy.spec import ExportSpec
from zoo.errors import BadInput
from zoo.inputs import KEYS, input_of

NORMALISATION = "(pixel / 255 - mean) / std"
MEANINGS = {  # of the only output of a model, by its task and the artefact's postprocessing
    ("classification", None): "logits; softmax over axis 1 gives probabilities",
    ("classification", "softmax"): "probabilities",
    ("multi-label", None): "logits; sigmoid gives the probability of each label",
    ("multi-label", "sigmoid"): "the probability of each label",
    ("segmentation", None): "logits; argmax over axis 1 gives the class of each pixel",
    ("segmentation", "argmax"): "the class of each pixel",
    ("super-resolution", None): "the enlarged image",
    ("restoration", None): "the restored image",
    ("detection", None): "for each anchor x1 y1 x2 y2 as shares of width and height, then a score"
    " of each class; without non-maximum suppression",
    ("retrieval", None): "embeddings of length 1; similar images have a large inner product",
    ("detection", "nms"): "detections: x1 y1 x2 y2 as shares of width and height, score, class;"
    " unused rows have class -1",
}


@dataclass(frozen=True)
class Origin:
    """Where a model comes from; unknown parts are None or empty.

    Attributes:
        name: Name of the model for `zoo.create_model`.
        args: The other arguments of `zoo.create_model`.
        weights: The file that its weights were read from.
        class_names: The name of each class, in the order of the logits.
        preprocessing: `size` (C H W), `mean`, `std`, `interpolation`, `crop_pct` and
            `channel_order` used in training. Missing keys default to the published values of
            `name`.
        data: The configuration group `data` of the training run.
    """

    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    class_names: Sequence[str] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None


# Keys of the group `data` that select the evaluation images; their preprocessing is in `input`.
DATA_KEYS = (
    "name", "root", "train_split_name", "val_split_name", "val_split", "folds", "fold",
    "split_file", "input_key", "target_key", "num_classes", "class_names", "palette", "val_images",
    "skip_corrupt",
)  # fmt: skip


def describe_model(model: nn.Module, origin: Origin, fused: bool) -> dict[str, Any]:
    """Return the entries of a manifest about the model, its weights, classes and data.

    Args:
        model: The exported model, before fusing.
        origin: Where the model comes from.
        fused: Whether the artefact contains the fused model.
    """
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
    config = origin.data or {}
    known = {key: config[key] for key in DATA_KEYS if config.get(key) is not None}
    return known if "name" in known else None


def describe_input(
    model: nn.Module,
    origin: Origin,
    name: str,
    spec: ExportSpec,
    pixels: bool,
    multiple: int | None,
) -> dict[str, Any]:
    """Return the entry `input` of a manifest: name, shape, type and preprocessing.

    Args:
        model: The exported model.
        origin: Where the model comes from.
        name: Name of the input.
        spec: Shape and dynamic axes of the input.
        pixels: Whether the artefact takes uint8 and normalises it; `mean` and `std` are then None.
        multiple: For a dynamic size: sides must be multiples of it, in pixels.
    """
    known = preprocessing_of(model, origin)
    shape = [spec.dynamic_axes.get(i, n) for i, n in enumerate(spec.input_size)]
    found = {
        "name": name,
        "shape": shape,
        "size": list(spec.input_size[1:]),
        **({} if multiple is None else {"multiple": multiple}),
        "layout": "NCHW" if len(shape) == 4 else "NCDHW",
        "dtype": "uint8" if pixels else "float32",
        "channels": {1: "grey", 3: known["channel_order"] or "RGB"}.get(spec.input_size[1]),
        # range of the values that mean and std apply to
        "range": [0, 255] if pixels else [0.0, 1.0],
        "normalisation": None if pixels or not known["mean"] else NORMALISATION,
        "mean": None if pixels else known["mean"],
        "std": None if pixels else known["std"],
        "normalised_inside": {"mean": known["mean"], "std": known["std"]} if pixels else None,
        "interpolation": known["interpolation"],
        "crop_pct": known["crop_pct"],
    }
    return found | schema.steps(task_of(model, origin), found)


def describe_outputs(
    outputs: list[dict[str, Any]], task: str, postprocessing: str | None
) -> list[dict[str, Any]]:
    """Return the entry `outputs` of a manifest: name, shape and, for one output, its meaning.

    Args:
        outputs: Name and shape of each output.
        task: The task of the model.
        postprocessing: What the artefact does after the model.
    """
    if len(outputs) != 1:
        return outputs
    meaning = MEANINGS.get((task, postprocessing))
    if (task, postprocessing) == ("segmentation", None) and outputs[0]["shape"][1:2] == [1]:
        meaning = "a logit; a pixel has the second of two classes where it is greater than 0"
    return [{**outputs[0], "meaning": meaning}]


def preprocessing_of(model: nn.Module, origin: Origin) -> dict[str, Any]:
    """Return `size`, `mean`, `std`, `interpolation`, `crop_pct` and `channel_order`.

    Values used in training override the published ones; unknown values are None.
    """
    known = input_of(model, origin.name)
    known |= {key: origin.preprocessing[key] for key in KEYS if key in origin.preprocessing}
    return known


def task_of(model: nn.Module, origin: Origin) -> str:
    """Return the task of a model: its registered one, else `"classification"`.

    A classifier that was trained on sets of labels is for `"multi-label"`.
    """
    name, data = origin.name, (origin.data or {}).get("name", "")
    task = "classification"
    if name is not None and not registry.is_timm(name):
        task = registry.get_spec(name).task
    is_multi_label = task == "classification" and presets.task(data) == "multi-label"
    return "multi-label" if is_multi_label else task


def check_class_names(model: nn.Module, origin: Origin) -> None:
    """Raise `BadInput` unless there is one class name per class of the model."""
    count = getattr(model, "num_classes", None)
    if count == 1 and task_of(model, origin) == "segmentation":
        count = 2  # one logit decides between two classes
    if origin.class_names is not None and count is not None and len(origin.class_names) != count:
        raise BadInput(
            f"origin.class_names has {len(origin.class_names)} names, but the model has {count} "
            "classes; give one name per class, or none"
        )


def write(content: dict[str, Any], file: Path) -> None:
    """Write a manifest with `content`, the schema and the date to `file`.

    Raises:
        BadInput: The content does not follow the schema, so that nobody could read the manifest.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    whole = {"schema": schema.SCHEMA, **content, "date": date}
    try:
        schema.check(whole)
    except BadInput as error:
        reason = str(error).removesuffix(schema.ADVICE)
        raise BadInput(f"the manifest would not be valid, because it {reason}") from error
    text = json.dumps(whole, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def state_sha256(model: nn.Module) -> str:
    """Return the sha256 of a model's state dict: names, types, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
