"""`export.py`: build a model, load its weights, and export it to one or several formats.

With `quantize.int8=true` each artefact is quantised as well, by `zoo.commands.int8_step`.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from zoo import progress
from zoo.blocks.sizes import pair
from zoo.commands import resolve
from zoo.commands.int8_step import Int8Step, check_quantize, refuse_unused
from zoo.data import presets
from zoo.deploy import formats, int8_graph
from zoo.deploy.manifest import Origin
from zoo.deploy.pipeline import Artefact, export
from zoo.deploy.predict import SUPPORTED as PREDICTABLE
from zoo.display import ms
from zoo.errors import BadInput, ZooError
from zoo.factory import create_model
from zoo.inputs import input_of
from zoo.profiling.latency import measure
from zoo.quoting import command_line
from zoo.reports.claims import plus_minus
from zoo.settings import DataConfig, ExportConfig, ExportRun
from zoo.training.checkpoint import folder_of
from zoo.weights import load_content

# Keys of the group `export` that are arguments of `zoo.export`.
OPTIONS = ("dynamic_size", "opset", "half", "preprocess", "postprocess", "fuse", "overwrite")


def run(settings: ExportRun, explicit: resolve.Explicit) -> list[Artefact]:
    """Export a model, and print a summary of each artefact.

    If one of several formats fails, the others are still exported; the error comes at the end.

    Args:
        settings: The settings of `export.py`.
        explicit: Keys that the user set. They override the model and data settings that are saved
            in a checkpoint.

    Raises:
        ZooError: A setting is invalid, or the outputs of an artefact differ from those of the
            model.
    """
    names = _formats(settings.format)
    batch = _batch(settings.export.batch)
    size = settings.export.image_size
    sides = None if size is None else pair(size, "export.image_size")
    if settings.quantize.int8:
        check_quantize(settings.quantize)
    else:
        refuse_unused(settings.quantize, explicit)
    if len(names) == 1:  # fail before building the model
        _check_format(names[0], batch, settings)
    saved = resolve.read_command_weights(settings)
    with progress.phase("building the model"):
        settings, model, origin = load_model(settings, explicit, saved)
    options = _options(settings.export, model, origin, batch, sides)
    has_weights = origin.weights is not None or settings.model.pretrained
    if not has_weights:
        print(
            "warning: the weights are random; give weights=<run or file> or model.pretrained=true"
            " to export trained ones",
            file=sys.stderr,
        )
    step = None
    if settings.quantize.int8:
        step = Int8Step(settings, explicit, model, origin, options, has_weights)
    artefacts, failed = [], []
    for name in names:
        try:
            _check_format(name, batch, settings)
            several, is_int8 = len(names) > 1, int8_graph.is_converted(model)
            path = output_path(settings, origin, name, several=several, is_int8=is_int8)
            if step is None:
                artefacts.append(_export(model, name, path, options, has_weights))
            else:
                artefacts.append(step.run(name, path))
        except ZooError as error:
            if len(names) == 1:
                raise
            failed.append((name, error))
    if failed:
        messages = "; ".join(f"{name}: {error}" for name, error in failed)
        raise type(failed[0][1])(f"{len(failed)} of {len(names)} formats failed. {messages}")
    _print_next(artefacts)
    return artefacts


def load_model(
    settings: ExportRun, explicit: resolve.Explicit, saved: resolve.SavedWeights | None = None
) -> tuple[ExportRun, nn.Module, Origin]:
    """Return the resolved settings, the model with its weights in evaluation mode, and its origin.

    Args:
        settings: The settings of `export.py`.
        explicit: Keys that the user set.
        saved: The content of `settings.weights`, if it was read before.

    Raises:
        BadInput: Two settings name weights.
        BadWeights: The weights cannot be read, or do not fit the model.
    """
    saved = saved or resolve.read_command_weights(settings)
    settings, arguments = resolve.describe_model(settings, saved, explicit)
    model, origin = _build(settings, saved, arguments)
    chosen = _chosen_preprocessing(settings.data, explicit, getattr(model, "in_chans", 3))
    preprocessing = {**origin.preprocessing, **chosen}
    return settings, model, dataclasses.replace(origin, preprocessing=preprocessing)


def _chosen_preprocessing(
    data: DataConfig, explicit: resolve.Explicit, in_chans: int
) -> dict[str, Any]:
    """Return the preprocessing that the user set, for weights that expect other images.

    Raises:
        BadInput: A value is invalid.
    """
    presets.check_preprocessing(dataclasses.replace(data, in_chans=in_chans))
    return {key: getattr(data, key) for key in presets.PREPROCESSING if f"data.{key}" in explicit}


def _formats(value: Any) -> list[str]:
    """Return the formats in `format`, which is one name or a list, without duplicates."""
    names = list(value) if isinstance(value, list | tuple) else [value]
    if not names:
        raise BadInput("format=[] is empty; give at least one format")
    for name in names:
        formats.get_format(name)
    return list(dict.fromkeys(names))


def _batch(value: Any) -> int | str | None:
    """Check and return `export.batch`. With None, the batch is dynamic if the format allows it."""
    if value is None or value == "dynamic":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"export.batch={value} must be null, dynamic or at least 1")
    return value


def _check_format(name: str, batch: int | str | None, settings: ExportRun) -> None:
    """Raise an error for settings that the format does not support."""
    if settings.quantize.int8:
        Int8Step.check_format(name, settings.export)
    formats.check_options(
        name,
        dynamic_batch=batch == "dynamic",
        dynamic_size=settings.export.dynamic_size,
        preprocess=settings.export.preprocess,
        opset=settings.export.opset,
    )


def _build(
    settings: ExportRun, saved: resolve.SavedWeights | None, arguments: dict[str, Any]
) -> tuple[nn.Module, Origin]:
    """Return the model with its weights in evaluation mode, and its origin.

    Raises:
        BadInput: A setting has no effect on a quantisation-aware checkpoint.
        BadWeights: The weights do not fit.
    """
    name = arguments["name"]
    others = {key: value for key, value in arguments.items() if key != "name"}
    if saved is None:
        model = create_model(**arguments).eval()
        return model, Origin(name, others)
    if saved.is_qat:
        model = _build_qat(settings, saved, arguments)
    else:
        model = create_model(**arguments).eval()
        advice = "give model.num_classes as in the file"
        load_content(model, saved.content, saved.source, advice=advice)
    return model, Origin(
        name=name,
        args=others,
        weights=saved.path,
        class_names=saved.class_names,
        preprocessing=saved.preprocessing,
        data=saved.groups.get("data"),
    )


def _build_qat(
    settings: ExportRun, saved: resolve.SavedWeights, arguments: dict[str, Any]
) -> nn.Module:
    """Return the graph of quantisation-aware training, with its weights in int8."""
    if settings.quantize.int8:
        raise BadInput(
            f"quantize.int8=true has no effect: {saved.source} was trained with train.qat and is"
            " always exported in int8; leave it out"
        )
    changed = [key for key, value in saved.model.items() if arguments.get(key, value) != value]
    if changed:
        key = changed[0]
        raise BadInput(
            f"model.{key}={arguments[key]} differs from the {saved.model[key]} of {saved.source},"
            " which was trained with train.qat; leave it out"
        )
    return int8_graph.converted(int8_graph.rebuild(saved.content, saved.source))


def _options(
    export: ExportConfig,
    model: nn.Module,
    origin: Origin,
    batch: int | str | None,
    sides: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return all arguments of `zoo.export` except model, format and path."""
    return {
        "input_size": (batch if isinstance(batch, int) else 1, *image_shape(model, origin, sides)),
        "dynamic_batch": None if batch is None else batch == "dynamic",
        **{key: value for key, value in dataclasses.asdict(export).items() if key in OPTIONS},
        "origin": origin,
    }


def image_shape(model: nn.Module, origin: Origin, sides: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the shape C H W of the images to export for; C D H W for volumes."""
    known = origin.preprocessing.get("size") or input_of(model, origin.name)["size"]
    if sides is None and known is None:
        raise BadInput(f"{origin.name} has no default image size; give export.image_size=<pixels>")
    if sides is not None and known is not None and len(known) != 3:
        raise BadInput(
            f"export.image_size={list(sides)}: {origin.name} takes volumes; leave it out for the"
            f" default {known[1:]}, or call zoo.export with input_size"
        )
    chosen = sides or tuple(known or ())[1:]
    return getattr(model, "in_chans", None) or (known[0] if known else 3), *chosen


def output_path(
    settings: ExportRun, origin: Origin, name: str, *, several: bool, is_int8: bool = False
) -> Path:
    """Return where an artefact is written to.

    By default, every format, image size and precision has a folder of its own: in the run folder
    if the weights are those of a run, else in `artefacts`.

    Args:
        settings: The resolved settings.
        origin: Where the model comes from.
        name: Name of the format.
        several: Whether several formats are exported.
        is_int8: Whether the model was trained in int8.
    """
    export = settings.export
    if export.out:
        out = Path(os.path.expanduser(export.out))
        return out / name if several else out
    base = Path("artefacts") / str(origin.name)
    if origin.weights is not None and origin.data is not None:  # of a run
        base = _relative(folder_of(origin.weights)) / "export"
    if export.image_size is not None:
        size = "x".join(map(str, dict.fromkeys(pair(export.image_size, "export.image_size"))))
        base = base.with_name(f"{base.name}_{size}")
    suffix = "_int8" if is_int8 or settings.quantize.int8 else "_half" if export.half else ""
    if settings.quantize.max_drop is not None:  # int8 or float, as found
        suffix = "_within_budget"
    return base / f"{name}{suffix}"


def _relative(path: Path) -> Path:
    """Return a path below the current folder without the current folder."""
    current = Path.cwd()
    return path.relative_to(current) if path.is_relative_to(current) else path


def _export(
    model: nn.Module, name: str, path: Path, options: dict[str, Any], has_weights: bool
) -> Artefact:
    artefact = export(model, name, path, **options)
    print(artefact.summary(has_weights))
    if artefact.agreement is None:
        print(f"not compared: {artefact.manifest['comparison']['why']}")
    else:
        print(artefact.agreement)
        with progress.phase("timing"):
            latency = _latency(artefact)
        print(latency)
    print(f"described in {artefact.manifest_path}")
    return artefact


def _print_next(artefacts: list[Artefact]) -> None:
    """Print the command that uses the last artefact, if it runs on this machine."""
    content, folder = artefacts[-1].manifest, artefacts[-1].path.parent
    if content["comparison"]["runtime"] is None:
        return
    is_image = len(content["input"]["size"]) == 3 and content["input"]["channels"] is not None
    if is_image and content["task"] in PREDICTABLE:
        print(f"next: {command_line('predict', None, folder, 'photo.jpg')}")
    elif content["task"] != "restoration":  # which no data set has
        print(f"next: {command_line('eval', {'artefact': folder})}")


def _latency(artefact: Artefact) -> str:
    """Return a line with the latency of one image, or of one batch if the batch is static."""
    batch = artefact.manifest["input"]["shape"][0]
    size = (batch if isinstance(batch, int) else 1, *artefact.manifest["input"]["size"])
    runtime = artefact.manifest["comparison"]["runtime"]
    found = measure(artefact.path, size, runtime, min_runs=6, min_time=0.3, max_time=3)
    images = f"{size[0]} image" + ("s" if size[0] > 1 else "")
    threads = f"{found.threads} thread" + ("s" if found.threads > 1 else "")
    return (
        f"latency of {images} in {runtime}, {threads}: median {ms(found.p50_ms)} ms"
        f" {plus_minus(found.p50_ms, found.low_ms, found.high_ms)}".rstrip()
        + f" ({found.n} call{'' if found.n == 1 else 's'})"
    )
