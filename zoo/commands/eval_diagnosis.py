"""What `eval.py` looks at besides the metrics: maps, features, and a model to compare with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.commands import export, resolve
from zoo.data.datamodule import ImageData
from zoo.deploy import files
from zoo.diagnosis import class_maps
from zoo.diagnosis.report import Diagnosis, Reference
from zoo.errors import BadInput
from zoo.settings import EvalRun, ExportRun
from zoo.training.artefact_model import ArtefactModel

NEAR = 5  # folders above an artefact that may have the run it was exported from


def check(settings: EvalRun) -> None:
    """Raise `BadInput` if the model to compare with does not exist."""
    given = settings.against
    if given not in (None, "none") and not Path(str(given)).expanduser().exists():
        raise BadInput(f"against={given} does not exist; give a run folder, a checkpoint, or none")


def of_model(
    settings: EvalRun, model: nn.Module, data: ImageData, device: torch.device
) -> Diagnosis:
    """Return what looks at the images of a model.

    Args:
        settings: The resolved settings.
        model: In evaluation mode, on `device`.
        data: The data module, after `setup`.
        device: The device of the model.
    """
    source = settings.against
    reference = None if source in (None, "none") else _reference(str(source), data)
    return Diagnosis(
        data,
        cut=class_maps.cut_model(model, device),
        features=_features(model, device),
        reference=reference,
        with_train=_with_train(settings, data),
    )


def of_artefact(
    settings: EvalRun, model: ArtefactModel, file: Path, manifest: dict[str, Any], data: ImageData
) -> Diagnosis:
    """Return what looks at the images of an artefact.

    Args:
        settings: The resolved settings.
        model: The artefact, loaded in its runtime.
        file: Its path.
        manifest: Its manifest.
        data: The data module, after `setup`.
    """
    source = settings.against
    if source is None:
        source = own_checkpoint(file, manifest)
    reference = None if source in (None, "none") else _reference(str(source), data)
    return Diagnosis(
        data,
        cut=_cut(model, file, manifest),
        features=model,
        reference=reference,
        with_train=_with_train(settings, data),
    )


def _with_train(settings: EvalRun, data: ImageData) -> bool:
    if settings.train_images and (data.streaming or data.task != "classification"):
        what = "from shards" if data.streaming else f"for {data.task}"
        raise BadInput(
            f"train_images=true is not supported {what}; leave it out, or use a folder of images"
        )
    if settings.train_images:
        data.source("train")  # raises an error if there are none
    return settings.train_images


def _features(model: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from images to what the classifier reads, or to the logits."""
    has_parts = hasattr(model, "forward_features") and hasattr(model, "forward_head")

    def features(images: Tensor) -> Tensor:
        images = images.to(device)
        if not has_parts:
            return model(images)
        return model.forward_head(model.forward_features(images), pre_logits=True)

    return features


def _reference(source: str, data: ImageData) -> Reference:
    """Return the model of a run; raise `BadInput` unless it has the classes of the data."""
    saved = resolve.read_weights(source)
    if not saved.is_run:
        raise BadInput(f"against={source} is not a run of train.py; give a run folder, or none")
    if saved.num_classes != data.num_outputs or (
        data.class_names and saved.class_names and saved.class_names != data.class_names
    ):
        raise BadInput(
            f"against={source} has other classes than the data; give a run that was trained on"
            " the same classes, or none"
        )
    _, model, _ = export.load_model(ExportRun(weights=source), {}, saved)
    return Reference(source, lambda images: model(images))


def own_checkpoint(file: Path, manifest: dict[str, Any]) -> str | None:
    """Return the checkpoint that an artefact was exported from, if it is in a folder above it."""
    about = manifest.get("weights") or {}
    name, digest = about.get("file"), about.get("sha256")
    if name is None or manifest.get("task", "classification") != "classification":
        return None
    for folder in list(file.resolve().parents)[:NEAR]:
        checkpoint = folder / "checkpoints" / name
        if checkpoint.is_file() and files.sha256(checkpoint) == digest:
            return os.path.relpath(checkpoint)
    return None


def _cut(model: ArtefactModel, file: Path, manifest: dict[str, Any]) -> class_maps.Cut | None:
    if file.suffix != ".onnx":
        return None
    shape = manifest["input"]["shape"]
    batch = shape[0] if isinstance(shape[0], int) else None
    try:
        runtime = model.artefact.runtime.name
        return class_maps.OnnxCut(file, runtime, batch, model.prepared)
    except Exception:  # ONNX files of any origin: then there are no maps
        return None
