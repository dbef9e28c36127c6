"""`eval.py`: how good weights or an exported file are on a data set."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.commands import resolve
from zoo.data.datamodule import ImageData
from zoo.deploy import files, int8_graph
from zoo.errors import BadInput, BadWeights, first_line
from zoo.factory import create_model
from zoo.inputs import published_input
from zoo.reparam import reparameterize
from zoo.runtimes.artefacts import LoadedArtefact
from zoo.settings import EvalRun
from zoo.training import run_folder
from zoo.training.artefact_model import ArtefactModel
from zoo.training.builders import (
    IMAGENET_STATISTICS,
    check_against_data,
    check_forward,
    open_evaluation_data,
)
from zoo.training.checkpoint import folder_of
from zoo.training.evaluation import EvaluationTarget, evaluate_on
from zoo.weights import load_content


def run(settings: EvalRun, explicit: resolve.Explicit) -> dict[str, Any]:
    """Evaluate a model or an artefact; print the result and write it to a folder.

    Args:
        settings: Everything that `eval.py` reads.
        explicit: Keys that the user set. A checkpoint of `train.py` and an artefact bring their
            model and their data; these keys override them.

    Returns:
        The content of `report.json`.

    Raises:
        ZooError: A setting cannot work, the weights do not fit, or they know another number of
            classes than the data has; nothing was written.
    """
    if settings.batch_size < 1:
        raise BadInput(f"batch_size={settings.batch_size} must be at least 1")
    if settings.out is not None:
        run_folder.check_writable(settings.out, "out")
    if settings.artefact is not None:
        return _evaluate_artefact(settings, explicit)
    return _evaluate_weights(settings, explicit)


def _evaluate_weights(settings: EvalRun, explicit: resolve.Explicit) -> dict[str, Any]:
    _check_weights(settings)
    saved = None if settings.weights is None else resolve.read_weights(settings.weights)
    settings, arguments = resolve.describe_model(settings, saved, explicit)
    name = arguments["name"]
    out = _output_folder(settings, saved, name)
    data = _open_data(settings, saved)
    model = _build(settings, saved, arguments, data)
    is_qat = saved is not None and saved.is_qat
    form = ", fused" if settings.fused else ", quantisation-aware" if is_qat else ""
    device = _device(settings.device)
    layout = torch.channels_last
    target = EvaluationTarget(
        forward=model.to(device, memory_format=layout),  # pyright: ignore[reportCallIssue]
        data=data,
        device=device,
        about={
            "model": name,
            "weights": str(saved.path if saved else settings.model.checkpoint_path or "published"),
            "fused": settings.fused or is_qat,
            **({"qat": True} if is_qat else {}),
        },
        title=name + form,
        class_names=saved.class_names if saved else None,
        memory_format=layout,
    )
    return evaluate_on(target, out)


def _check_weights(settings: EvalRun) -> None:
    """Raise `BadInput` if no weights are named, or only those of an encoder."""
    model = settings.model
    if settings.runtime is not None:
        raise BadInput(f"runtime={settings.runtime} is for artefacts; give artefact=<file>, too")
    if settings.weights is None and not model.pretrained and model.checkpoint_path is None:
        raise BadInput(
            "weights is not set; name a run folder, a checkpoint, a file of published weights or"
            " its address, or set model.pretrained=true; for an exported file give artefact=<file>"
        )
    if model.encoder is not None and model.pretrained:
        raise BadInput("model.pretrained only loads the encoder; name weights of the whole model")


def _output_folder(settings: EvalRun, saved: resolve.SavedWeights | None, name: str) -> Path:
    """Return the folder of the report; it is not created yet."""
    if settings.out is not None:
        return Path(settings.out).expanduser()
    is_fetched = saved is not None and saved.source.startswith(("http", "hf:"))
    if saved is None or is_fetched:
        base, label = Path("runs"), f"eval_{name}_{settings.data.name}"
    else:
        base, label = folder_of(saved.path), f"eval_{settings.data.name}"
    folder = base / (label.replace("/", "-") + ("_fused" if settings.fused else ""))
    run_folder.check_writable(folder, "out")
    return folder


def _open_data(settings: EvalRun, saved: resolve.SavedWeights | None) -> ImageData:
    """Open the validation images, prepared as the weights expect."""
    if saved is not None and saved.is_run:
        expected = saved.preprocessing
    else:
        published = published_input(settings.model.encoder or settings.model.name)
        expected = IMAGENET_STATISTICS | {k: v for k, v in published.items() if v is not None}
    data = open_evaluation_data(
        settings.data,
        settings.batch_size,
        expected,
        source=str(settings.weights),
        num_classes=saved.num_classes if saved else None,
    )
    check_against_data(settings.model, data)
    return data


def _build(
    settings: EvalRun,
    saved: resolve.SavedWeights | None,
    arguments: dict[str, Any],
    data: ImageData,
) -> nn.Module:
    """Build the model in evaluation mode, with its weights."""
    if saved is not None and saved.is_qat:
        return _build_qat(settings, saved, data)
    arguments = {**arguments, "num_classes": data.num_classes, "in_chans": data.in_chans}
    if settings.model.pretrained:
        _check_published_classes(arguments, data)
    model = create_model(**arguments)
    if saved is not None:
        try:
            load_content(model, saved.content, saved.source)
        except BadWeights as error:
            if "only the classifier" not in str(error):
                raise
            raise BadWeights(
                f"{saved.source} knows another number of classes than the {data.num_classes} of the"
                f" data ({error})"
            ) from error
    model.eval()
    check_forward(model, arguments["name"], data)
    return reparameterize(model) if settings.fused else model


def _build_qat(settings: EvalRun, saved: resolve.SavedWeights, data: ImageData) -> nn.Module:
    """Build the graph of quantisation-aware training: it rounds as its int8 artefact does."""
    if settings.fused:
        raise BadInput(f"fused=true has no effect: {saved.source} was trained fused, by train.qat")
    size, trained = [data.in_chans, *data.image_size], saved.content["qat"]["input_size"]
    if size != trained:
        raise BadInput(
            f"data.image_size={size[1:]}: {saved.source} was trained by train.qat for {trained[1:]}"
            " only; leave it out"
        )
    return int8_graph.rebuild(saved.content, saved.source)


def _check_published_classes(arguments: dict[str, Any], data: ImageData) -> None:
    """Raise `BadInput` for other classes: `pretrained` would start with a random classifier."""
    plain = {**arguments, "num_classes": None, "pretrained": False}
    published = create_model(**plain).num_classes
    if published != data.num_classes:
        raise BadInput(
            f"the published weights of {arguments['name']} know {published} classes, the data has"
            f" {data.num_classes}; evaluate on the data they were trained on"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device={name} cannot be used: {first_line(error)}") from error
    return device


def _evaluate_artefact(settings: EvalRun, explicit: resolve.Explicit) -> dict[str, Any]:
    _refuse_model_settings(settings, explicit)
    file, manifest = files.read(str(settings.artefact))
    settings = _resolve_data(settings, explicit, file, manifest)
    artefact = LoadedArtefact(file, manifest, settings.runtime)
    data = _open_artefact_data(settings, file, manifest)
    model = ArtefactModel(artefact, manifest, data)
    model.check(file.name)
    runtime, about = artefact.runtime, manifest.get("model", {})
    label = f"eval_{data.config.name}_{runtime.name}".replace("/", "-")
    out = Path(settings.out or file.parent / label).expanduser()
    run_folder.check_writable(out, "out")
    precision = manifest.get("precision", "float32")
    title = f"{about.get('name') or file.name}, {manifest.get('format')} {precision}"
    target = EvaluationTarget(
        forward=model,
        data=data,
        device=torch.device("cpu"),
        about={
            "model": about.get("name"),
            "artefact": str(file),
            "sha256": manifest["artefact"]["sha256"],
            "format": manifest.get("format"),
            "precision": precision,
            "runtime": runtime.name,
            "runtime_version": runtime.version,
            "fused": about.get("fused"),
        },
        title=f"{title} in {runtime.name}",
        class_names=manifest.get("class_names"),
        unknown=("loss",) if model.answer == "argmax" else (),
    )
    return evaluate_on(target, out)


def _refuse_model_settings(settings: EvalRun, explicit: resolve.Explicit) -> None:
    """Raise `BadInput` for settings that have no effect on an artefact."""
    given = [f"weights={settings.weights}"] if settings.weights is not None else []
    given += [f"{key}={value}" for key, value in explicit.items() if key.startswith("model.")]
    given += ["fused=true"] if settings.fused else []
    given += [f"device={settings.device}"] if settings.device != "auto" else []
    if given:
        raise BadInput(
            f"{given[0]} has no effect on an artefact, which is evaluated as it is; leave it or"
            " artefact out"
        )


def _resolve_data(
    settings: EvalRun, explicit: resolve.Explicit, file: Path, manifest: dict[str, Any]
) -> EvalRun:
    """Return the settings with the data of the manifest, and images of the artefact's size."""
    takes, saved = manifest["input"], manifest.get("data")
    if saved is None and "data.name" not in explicit:
        raise BadInput(f"{file.parent / files.MANIFEST} names no data set; give data=<name>")
    settings = resolve.merge(settings, {"data": saved} if saved else {}, explicit, file)
    data = resolve.fit_images(settings.data, explicit, file.name, takes["shape"], takes["size"])
    multiple = takes.get("multiple") or 1
    if any(side % multiple for side in data.image_size):
        raise BadInput(
            f"data.image_size={data.image_size}: {file.name} takes multiples of {multiple}"
        )
    for key in ("mean", "std"):
        if takes.get("dtype") == "uint8" and f"data.{key}" in explicit:
            raise BadInput(
                f"data.{key} has no effect on {file.name}, which normalises its input; leave it out"
            )
    return dataclasses.replace(settings, data=data)


def _open_artefact_data(settings: EvalRun, file: Path, manifest: dict[str, Any]) -> ImageData:
    """Open the validation images, prepared as the manifest says."""
    takes = manifest["input"]
    expected = takes | (takes.get("normalised_inside") or {})
    for key in ("mean", "std"):
        if expected[key] is None and getattr(settings.data, key) is None:
            raise BadInput(f"{file.parent / files.MANIFEST} states no {key}; give data.{key}")
    return open_evaluation_data(
        settings.data,
        settings.batch_size,
        expected,
        source=file.name,
        task=manifest.get("task", "classification"),
        num_classes=manifest.get("model", {}).get("num_classes"),
    )
