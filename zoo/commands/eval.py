"""`eval.py`: evaluate weights or an exported file on a data set."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import registry
from zoo.build import published_entry
from zoo.commands import eval_diagnosis, resolve
from zoo.commands.devices import find_device
from zoo.data.datamodule import ImageData
from zoo.data.presets import PREPROCESSING
from zoo.deploy import files, int8_graph
from zoo.errors import BadInput
from zoo.factory import create_model
from zoo.fetch import is_address
from zoo.inputs import published_input, published_normalisation
from zoo.progress import phase
from zoo.quoting import command_line
from zoo.reparam import reparameterize
from zoo.runtimes.artefacts import LoadedArtefact
from zoo.settings import EvalRun
from zoo.training import logs, run_data, run_folder
from zoo.training.artefact_model import ArtefactModel
from zoo.training.builders import (
    check_against_data,
    check_forward,
    open_evaluation_data,
)
from zoo.training.checkpoint import folder_of
from zoo.training.checks import check_value
from zoo.training.evaluation import EvaluationTarget, evaluate_on
from zoo.weights import load_content

log = logging.getLogger("zoo.data")


def run(settings: EvalRun, explicit: resolve.Explicit) -> dict[str, Any]:
    """Evaluate a model or an artefact, print the result and write a report.

    Args:
        settings: The settings of `eval.py`.
        explicit: Keys that the user set. They override the model and data settings that are saved
            in a checkpoint or an artefact.

    Returns:
        The content of `report.json`.

    Raises:
        ZooError: A setting is invalid, the weights do not fit, or they have another number of
            classes than the data; nothing was written.
    """
    check_value("batch_size", settings.batch_size, settings.batch_size >= 1, "at least 1")
    eval_diagnosis.check(settings)
    if settings.out is not None:
        run_folder.check_writable(settings.out, "out")
    evaluate = _evaluate_weights if settings.artefact is None else _evaluate_artefact
    with logs.data_warnings(logs.make_console()):
        return evaluate(settings, explicit)


def _evaluate_weights(settings: EvalRun, explicit: resolve.Explicit) -> dict[str, Any]:
    _check_weights(settings)
    with phase("reading the weights"):
        saved = resolve.read_command_weights(settings)
    settings, arguments = resolve.describe_model(settings, saved, explicit)
    name = arguments["name"]
    out = _output_folder(settings, saved, name)
    with phase("opening the data"):
        data = _open_data(settings, saved)
    with phase(f"building {name}"):
        model = _build(settings, saved, arguments, data)
    is_qat = saved is not None and saved.is_qat
    form = ", fused" if settings.fused else ", quantisation-aware" if is_qat else ""
    device = find_device(settings.device)
    layout = torch.channels_last
    model = model.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    target = EvaluationTarget(
        forward=model,
        data=data,
        device=device,
        about={
            "model": name,
            "weights": str(saved.path if saved else "published"),
            "fused": settings.fused or is_qat,
            **({"qat": True} if is_qat else {}),
        },
        title=name + form,
        next_commands=_next_commands(settings, saved, name, explicit),
        memory_format=layout,
        tta=settings.tta,
        diagnosis=eval_diagnosis.of_model(settings, model, data, device),
    )
    return evaluate_on(target, out)


def _next_commands(
    settings: EvalRun, saved: resolve.SavedWeights | None, name: str, explicit: resolve.Explicit
) -> list[str]:
    """Return the command that exports what was evaluated, with the same preprocessing."""
    chosen: dict[str, Any] = {}
    if saved is None or not saved.is_run:
        chosen |= {"model": name}
        chosen |= {key: value for key, value in explicit.items() if key.startswith("model.")}
        chosen.pop("model.name", None)
    if saved is None:
        key = "pretrained" if settings.model.pretrained else "checkpoint_path"
        chosen |= {f"model.{key}": getattr(settings.model, key)}
    else:
        chosen |= {"weights": saved.source}
    keys = [f"data.{key}" for key in PREPROCESSING]
    return [
        command_line("export", chosen | {key: explicit[key] for key in keys if key in explicit})
    ]


def _check_weights(settings: EvalRun) -> None:
    """Raise `BadInput` unless the settings name weights of the whole model."""
    model = settings.model
    if settings.runtime is not None:
        raise BadInput(
            f"runtime={settings.runtime} has no effect without artefact=<file>; give an artefact,"
            " or leave runtime out"
        )
    if settings.weights is None and not model.pretrained and model.checkpoint_path is None:
        raise BadInput(
            "weights is not set; give a run folder, a checkpoint, or a file or URL of published"
            " weights, or set model.pretrained=true; for an exported file, give artefact=<file>"
        )
    if model.encoder is not None and model.pretrained:
        raise BadInput(
            "model.pretrained=true only loads the encoder; give weights=<file> of the whole model"
        )


def _output_folder(settings: EvalRun, saved: resolve.SavedWeights | None, name: str) -> Path:
    """Return the folder of the report, without creating it."""
    if settings.out is not None:
        return Path(settings.out).expanduser()
    is_downloaded = saved is not None and is_address(saved.source)
    if saved is None or is_downloaded:
        base, label = Path("runs"), f"eval_{name}_{settings.data.name}"
    else:
        base, label = folder_of(saved.path), f"eval_{settings.data.name}"
    folder = base / (label.replace("/", "-") + ("_fused" if settings.fused else ""))
    run_folder.check_writable(folder, "out")
    return folder


def _open_data(settings: EvalRun, saved: resolve.SavedWeights | None) -> ImageData:
    """Open the validation images, with the preprocessing that the weights expect."""
    if saved is not None and saved.is_run:
        expected = saved.preprocessing
    else:
        name = settings.model.encoder or settings.model.name
        expected = {**published_input(name), **published_normalisation(name)}
    data = open_evaluation_data(
        settings.data,
        settings.batch_size,
        expected,
        source=str(settings.weights),
        num_classes=saved.num_classes if saved else None,
        class_names=saved.class_names if saved else None,
        saved_split=_saved_split(settings, saved),
    )
    if (saved is None or not saved.is_run) and data.class_names and data.config.root:
        log.warning(
            "the weights have no class names: their classes are matched with those of the data by"
            " position, in alphabetical order of the folders"
        )
    check_against_data(settings.model, data)
    return data


def _saved_split(settings: EvalRun, saved: resolve.SavedWeights | None) -> dict[str, str] | None:
    if saved is None or not saved.is_run:
        return None
    return run_data.saved_split(folder_of(saved.path), saved.groups.get("data"), settings.data)


def _build(
    settings: EvalRun,
    saved: resolve.SavedWeights | None,
    arguments: dict[str, Any],
    data: ImageData,
) -> nn.Module:
    """Build the model with its weights, in evaluation mode."""
    if saved is not None and saved.is_qat:
        return _build_qat(settings, saved, data)
    arguments = {**arguments, "num_classes": data.num_outputs, "in_chans": data.in_chans}
    if settings.model.pretrained:
        _check_published_classes(arguments, data)
    model = create_model(**arguments)
    if saved is not None:
        advice = (
            "it has another number of classes than the data, which has"
            f" {data.num_classes}; choose the data that it was trained on"
        )
        load_content(model, saved.content, saved.source, advice=advice)
    model.eval()
    check_forward(model, arguments["name"], data)
    return reparameterize(model) if settings.fused else model


def _build_qat(settings: EvalRun, saved: resolve.SavedWeights, data: ImageData) -> nn.Module:
    """Build the graph of quantisation-aware training, which rounds like its int8 artefact."""
    if settings.fused:
        raise BadInput(
            f"fused=true has no effect: {saved.source} was trained with train.qat, which fuses the"
            " model; leave fused out"
        )
    size, trained = [data.in_chans, *data.image_size], saved.content["qat"]["input_size"]
    if size != trained:
        raise BadInput(
            f"data.image_size={size[1:]}: {saved.source} was trained with train.qat for"
            f" {trained[1:]} only; leave data.image_size out"
        )
    return int8_graph.rebuild(saved.content, saved.source)


def _check_published_classes(arguments: dict[str, Any], data: ImageData) -> None:
    """Raise `BadInput` if the classes differ: `pretrained` would add a random classifier."""
    spec = registry.get_spec(arguments["name"])
    if spec.family != "timm" and not published_entry(spec).get("head", True):
        raise BadInput(
            f"the published weights of {spec.full_name} have no classifier; train one, then give"
            " weights=<run folder>"
        )
    plain = {**arguments, "num_classes": None, "pretrained": False}
    published: Any = create_model(**plain).num_classes
    data.accept_outputs(published)
    if published != data.num_outputs:
        raise BadInput(
            f"the published weights of {arguments['name']} have {published} classes, but the data"
            f" has {data.num_classes}; choose the data that they were trained on"
        )


def _evaluate_artefact(settings: EvalRun, explicit: resolve.Explicit) -> dict[str, Any]:
    _check_artefact_settings(settings, explicit)
    file, manifest = files.read(str(settings.artefact))
    settings = _resolve_data(settings, explicit, file, manifest)
    with phase(f"loading {file.name}"):
        artefact = LoadedArtefact(file, manifest, settings.runtime)
    data = _open_artefact_data(settings, file, manifest)
    model = ArtefactModel(artefact, manifest, data)
    model.check_output(file.name)
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
        next_commands=[command_line("predict", {}, file.parent, "photo.jpg")],
        tta=settings.tta,
        diagnosis=eval_diagnosis.of_artefact(settings, model, file, manifest, data),
        unavailable=("loss",) if model.postprocessing == "argmax" else (),
    )
    return evaluate_on(target, out)


def _check_artefact_settings(settings: EvalRun, explicit: resolve.Explicit) -> None:
    """Raise `BadInput` for settings that have no effect on an artefact."""
    given = [f"weights={settings.weights}"] if settings.weights is not None else []
    given += [f"{key}={value}" for key, value in explicit.items() if key.startswith("model.")]
    given += ["fused=true"] if settings.fused else []
    given += [f"device={settings.device}"] if settings.device != "auto" else []
    if given:
        raise BadInput(
            f"{given[0]} has no effect on an artefact, which cannot be changed; leave it out, or"
            " leave artefact out"
        )


def _resolve_data(
    settings: EvalRun, explicit: resolve.Explicit, file: Path, manifest: dict[str, Any]
) -> EvalRun:
    """Return the settings with the data of the manifest, and the image size of the artefact."""
    expected, saved = manifest["input"], manifest.get("data")
    if saved is None and "data.name" not in explicit:
        raise BadInput(f"{file.parent / files.MANIFEST} does not name a data set; give data=<name>")
    settings = resolve.merge(settings, {"data": saved} if saved else {}, explicit, file)
    data = resolve.fit_images(
        settings.data, explicit, file.name, expected["shape"], expected["size"]
    )
    multiple = expected.get("multiple") or 1
    if any(side % multiple for side in data.image_size):
        raise BadInput(
            f"data.image_size={data.image_size} is not supported by {file.name}: every side must be"
            f" a multiple of {multiple}"
        )
    for key in ("mean", "std"):
        if expected.get("dtype") == "uint8" and f"data.{key}" in explicit:
            raise BadInput(
                f"data.{key} has no effect on {file.name}, which normalises its input; leave it out"
            )
    return dataclasses.replace(settings, data=data)


def _open_artefact_data(settings: EvalRun, file: Path, manifest: dict[str, Any]) -> ImageData:
    """Open the validation images, with the preprocessing of the manifest."""
    expected = manifest["input"] | (manifest["input"].get("normalised_inside") or {})
    expected["channel_order"] = "BGR" if expected.get("channels") == "BGR" else None
    for key in ("mean", "std"):
        if expected[key] is None and getattr(settings.data, key) is None:
            raise BadInput(f"{file.parent / files.MANIFEST} has no {key}; give data.{key}")
    return open_evaluation_data(
        settings.data,
        settings.batch_size,
        expected,
        source=file.name,
        task=manifest.get("task", "classification"),
        num_classes=manifest.get("model", {}).get("num_classes"),
        class_names=manifest.get("class_names"),
    )
