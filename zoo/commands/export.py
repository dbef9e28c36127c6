"""`export.py`: build a model, load its weights, and export it to one or several formats.

With `quantize.int8=true` each artefact is quantised as well, by `zoo.commands.int8_step`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from zoo.blocks.sizes import pair
from zoo.commands import resolve
from zoo.commands.int8_step import Int8Step, check_quantize, refuse_unused
from zoo.deploy import formats, int8_graph
from zoo.deploy.manifest import Origin
from zoo.deploy.pipeline import Artefact, export
from zoo.errors import BadInput, ZooError
from zoo.factory import create_model
from zoo.inputs import input_of
from zoo.profiling.latency import measure
from zoo.settings import ExportConfig, ExportRun
from zoo.weights import load_content, local_file, run_checkpoint

# Keys of the group `export` that are arguments of `zoo.export`.
OPTIONS = ("dynamic_size", "opset", "half", "preprocess", "postprocess", "fuse", "overwrite")


def run(settings: ExportRun, explicit: resolve.Explicit) -> list[Artefact]:
    """Export as `settings` say, and print what was made.

    With several formats each is tried; those that failed are named at the end.

    Args:
        settings: Everything that `export.py` reads.
        explicit: Keys that the user set. A checkpoint of `train.py` brings its model and, for int8,
            its data; these keys override them.

    Raises:
        ZooError: A setting cannot work, or an artefact does not compute what the model computes.
    """
    names = _formats(settings.format)
    batch = _batch(settings.export.batch)
    size = settings.export.image_size
    sides = None if size is None else pair(size, "export.image_size")
    if settings.quantize.int8:
        check_quantize(settings.quantize)
    else:
        refuse_unused(settings.quantize, explicit)
    if len(names) == 1:  # before a model is built
        _check_format(names[0], batch, settings)
    settings, model, origin = load_model(settings, explicit)
    options = _options(settings.export, model, origin, batch, sides)
    has_weights = bool(
        settings.weights or settings.model.pretrained or settings.model.checkpoint_path
    )
    step = None
    if settings.quantize.int8:
        step = Int8Step(settings, explicit, model, origin, options, has_weights)
    artefacts, failed = [], []
    for name in names:
        try:
            _check_format(name, batch, settings)
            path = _output_path(settings.export.out, origin, name, len(names) > 1)
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
        raise type(failed[0][1])(f"{len(failed)} of {len(names)} formats failed: {messages}")
    return artefacts


def load_model(
    settings: ExportRun, explicit: resolve.Explicit
) -> tuple[ExportRun, nn.Module, Origin]:
    """Return the resolved settings, the model in evaluation mode with its weights, its origin.

    Raises:
        BadInput: Weights are named twice.
        BadWeights: They cannot be read, or are those of another model.
    """
    saved = None if settings.weights is None else resolve.read_weights(settings.weights)
    settings, arguments = resolve.describe_model(settings, saved, explicit)
    return settings, *_build(settings, saved, arguments)


def _formats(value: Any) -> list[str]:
    """Return the names in `format`: one, or a list without repetitions."""
    names = list(value) if isinstance(value, list | tuple) else [value]
    if not names:
        raise BadInput("format=[] names no format")
    for name in names:
        formats.get_format(name)
    return list(dict.fromkeys(names))


def _batch(value: Any) -> int | str | None:
    """Return `export.batch`: None for a dynamic batch wherever the format supports it."""
    if value is None or value == "dynamic":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"export.batch={value!r} must be null, dynamic or a number of images")
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
    """Build the model in evaluation mode, with its weights.

    Raises:
        BadInput: A setting without effect on a quantisation-aware checkpoint.
        BadWeights: The weights do not fit.
    """
    name = arguments["name"]
    others = {key: value for key, value in arguments.items() if key != "name"}
    if saved is None:
        model = create_model(**arguments).eval()
        given = others.get("checkpoint_path")
        return model, Origin(name, others, weights=None if given is None else _file(given))
    if saved.is_qat:
        model = _build_qat(settings, saved, arguments)
    else:
        model = create_model(**arguments).eval()
        load_content(model, saved.content, saved.source)
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
    """Build the graph of quantisation-aware training, with its weights in int8."""
    if settings.quantize.int8:
        raise BadInput(
            f"{saved.source} comes from train.qat and is exported in int8 anyway; leave"
            " quantize.int8 out"
        )
    changed = [key for key, value in saved.model.items() if arguments.get(key, value) != value]
    if changed:
        raise BadInput(f"model.{changed[0]} differs from that of {saved.source}; leave it out")
    return int8_graph.converted(int8_graph.rebuild(saved.content, saved.source))


def _file(source: str) -> Path:
    path = local_file(source)
    return run_checkpoint(path) if path.is_dir() else path


def _options(
    export: ExportConfig,
    model: nn.Module,
    origin: Origin,
    batch: int | str | None,
    sides: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return the arguments of `zoo.export` besides model, format and path."""
    return {
        "input_size": (batch if isinstance(batch, int) else 1, *_image(model, origin, sides)),
        "dynamic_batch": None if batch is None else batch == "dynamic",
        **{key: value for key, value in dataclasses.asdict(export).items() if key in OPTIONS},
        "origin": origin,
    }


def _image(model: nn.Module, origin: Origin, sides: tuple[int, int] | None) -> tuple[int, ...]:
    """Return C H W (C D H W of volumes) to export for."""
    known = origin.preprocessing.get("size") or input_of(model, origin.name)["size"]
    if sides is None and known is None:
        raise BadInput(f"{origin.name} has no default image size; give export.image_size")
    if sides is not None and known is not None and len(known) != 3:
        raise BadInput(
            f"export.image_size={list(sides)}: {origin.name} takes volumes; leave it out for "
            f"{known[1:]}, or call zoo.export with input_size"
        )
    chosen = sides or tuple(known or ())[1:]
    return getattr(model, "in_chans", None) or (known[0] if known else 3), *chosen


def _output_path(out: str | None, origin: Origin, name: str, several: bool) -> Path:
    if not out:
        return Path("artefacts") / str(origin.name) / name
    return Path(out) / name if several else Path(out)


def _export(
    model: nn.Module, name: str, path: Path, options: dict[str, Any], has_weights: bool
) -> Artefact:
    artefact = export(model, name, path, **options)
    print(artefact.summary(has_weights))
    if artefact.agreement is None:
        print(f"not compared: {artefact.manifest['comparison']['why']}")
    else:
        print(artefact.agreement)
        print(_latency(artefact))
    print(f"described in {artefact.manifest_path}")
    return artefact


def _latency(artefact: Artefact) -> str:
    """Time the artefact in the runtime it was compared in, on one image if its batch allows it."""
    batch = artefact.manifest["input"]["shape"][0]
    size = (batch if isinstance(batch, int) else 1, *artefact.manifest["input"]["size"])
    runtime = artefact.manifest["comparison"]["runtime"]
    found = measure(artefact.path, size, runtime, min_runs=6, min_time=0.3, max_time=3)
    images = f"{size[0]} image" + ("s" if size[0] > 1 else "")
    threads = f"{found.threads} thread" + ("s" if found.threads > 1 else "")
    return (
        f"latency of {images} in {runtime}, {threads}: median {found.p50_ms:.2f} ms, "
        f"p90 {found.p90_ms:.2f} ms of {found.n} calls"
    )
