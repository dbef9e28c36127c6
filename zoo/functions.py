"""The commands as Python functions, with the settings of the command line as arguments.

```python
run = zoo.train(model="mobilenetv2_100", data="folder", root="photos", epochs=10, pretrained=True)
report = zoo.eval(weights=run)
artefacts = zoo.export(weights=run, format=["onnx", "openvino"])
```

An argument is a group (`model`, `data`, `experiment`), a dotted key (`**{"train.lr": 1e-3}`), the
last part of a key that only one group has (`lr`), or a group with several of its keys
(`train={"lr": 1e-3}`). Values are plain Python values or paths. `zoo train --help` lists the keys.
"""

import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from zoo import registry
from zoo.command_line import composition
from zoo.command_line.keys import FREE_KEYS, GROUPS, keys, nearest_key
from zoo.commands.push import push as push
from zoo.commands.verify import verify as verify
from zoo.commands.weights import list_weights as list_weights
from zoo.counting.count import Counts
from zoo.counting.count import count as count_module
from zoo.deploy.pipeline import Artefact
from zoo.deploy.pipeline import export as export_module
from zoo.errors import BadInput, unknown_value
from zoo.factory import create_model
from zoo.profiling.training_free import TrainingFreeScores
from zoo.quoting import hydra, setting
from zoo.reports.records import Record


def train(model: str | None = None, data: str | None = None, **settings: Any) -> Path:
    """Train a model; the same as `zoo train`, in one process unless `devices` says otherwise.

    Args:
        model: A registered name or `timm/<name>`.
        data: Name of a data set, such as `"folder"`.
        **settings: Keys of `zoo train`; see the top of this module. With `sweep`, a list or a range
            for a setting that is no list means one run for each value.

    Returns:
        The run folder, or the folder of the sweep.

    Raises:
        ZooError: A setting is invalid (nothing was written), or training diverged.
        SystemExit: Ctrl-C or SIGTERM; the run can be resumed.
    """
    given = _settings("train", model=model, data=data, **settings)
    if given.get("train.sweep") is None:
        return composition.run("train", _words({"train.devices": 1} | given))
    several = {key: value for key, value in given.items() if _has_several(key, value)}
    words = _words({key: value for key, value in given.items() if key not in several})
    for key, values in several.items():
        words.append(f"{key}=choice({','.join(hydra(_plain(value)) for value in values)})")
    return composition.run("train", words)


def fit(
    photos: str | os.PathLike[str],
    *,
    ms: float | None = None,
    model: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    size: int | None = None,
    epochs: int | None = None,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train a classifier on a folder of images, export it and test it, like `zoo fit`.

    The same call continues one that was interrupted, and ends with the same weights.

    Args:
        photos: Folder with a folder of images per class, or with `train` and `val` of those.
        ms: Largest median latency of one image in ms; picks the model by measuring.
        model: Name of the model, instead of `ms`; None for `mobilenetv2_100`.
        weights: File of weights to start from; None for the published ones.
        size: Side of the image in pixels; None for that of the model.
        epochs: None for 20 from published weights, otherwise 60.
        out: Folder of all results; None for `runs/fit/<name of photos>`.

    Returns:
        What each step found: the steps of `fit.json`.

    Raises:
        ZooError: An argument is invalid, or a step failed; the finished steps are kept.
        SystemExit: Ctrl-C or SIGTERM; the same call continues.
    """
    from zoo.commands.fit import fit as run_steps
    from zoo.settings import FitConfig

    return run_steps(
        FitConfig(
            photos=os.fspath(photos),
            ms=ms,
            model=model,
            weights=None if weights is None else os.fspath(weights),
            size=size,
            epochs=epochs,
            out=None if out is None else os.fspath(out),
        )
    )


def eval(weights: str | os.PathLike[str] | None = None, **settings: Any) -> dict[str, Any]:
    """Evaluate weights or an exported file; the same as `zoo eval`.

    Args:
        weights: A run folder, a checkpoint, or a file or URL of published weights.
        **settings: Keys of `zoo eval`, such as `artefact`; see the top of this module.

    Returns:
        The content of `report.json`.

    Raises:
        ZooError: A setting is invalid, or the weights do not fit.
    """
    return composition.run("eval", _words(_settings("eval", weights=weights, **settings)))


def benchmark(models: str | Sequence[str] | None = None, **settings: Any) -> list[Record]:
    """Count and time models; the same as `zoo benchmark`.

    Args:
        models: Names or globs.
        **settings: Keys of `zoo benchmark`; see the top of this module.

    Returns:
        One record per measurement.

    Raises:
        ZooError: A setting is invalid, or (at the end) a model could not be measured.
    """
    models = [models] if isinstance(models, str) else models
    return composition.run("benchmark", _words(_settings("benchmark", models=models, **settings)))


@overload
def export(
    model: nn.Module, format: str, path: str | os.PathLike[str], **options: Any
) -> Artefact: ...


@overload
def export(
    model: str | None = None,
    format: str | Sequence[str] = "onnx",
    path: None = None,
    **options: Any,
) -> list[Artefact]: ...


def export(
    model: nn.Module | str | None = None,
    format: str | Sequence[str] = "onnx",
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Artefact | list[Artefact]:
    """Export a module (`zoo.deploy.pipeline.export`), or a model by name like `zoo export`.

    The artefact is loaded again and compared with the model. If anything fails, no file is written.

    Args:
        model: A module in evaluation mode; or the name of a model, or None if `weights` is a run.
        format: `"onnx"`, `"pt2"`, `"torchscript"`, `"openvino"`, `"executorch"`, `"aoti"` or
            `"coreml"`; for a name, also several of them.
        path: A file with the suffix of the format, or a folder; for a name, None for the default.
        **options: For a module: fields of `zoo.deploy.pipeline.ExportOptions`, such as
            `input_size`. For a name: keys of `zoo export`; see the top of this module.

    Returns:
        The artefact of a module; a list of artefacts for a name.

    Raises:
        ZooError: An argument is invalid, the format does not support it, or the artefact does not
            match the model.
    """
    if model is not None and not isinstance(model, str):
        if not isinstance(format, str) or path is None:
            raise BadInput("zoo.export(module, format, path) takes one format and a path")
        return export_module(model, format, path, **options)
    formats = format if isinstance(format, str) else list(format)
    given = _settings("export", model=model, format=formats, **{"export.out": path}, **options)
    return composition.run("export", _words(given))


def pick(
    ms: float,
    *,
    top1: float | None = None,
    runtime: str | Sequence[str] = (),
    threads: int = 1,
    size: int | Sequence[int] = (),
    int8: bool = False,
    licence: str | Sequence[str] = (),
    data: str | os.PathLike[str] | None = None,
    finalists: int | None = None,
    models: str | Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Find the most accurate model that meets a latency on this machine, like `zoo pick`.

    Args:
        ms: Largest median latency of one image in ms.
        top1: Least published ImageNet-1k accuracy in percent.
        runtime: Runtimes to consider; none for those of ONNX Runtime and OpenVINO installed.
        threads: Threads per call.
        size: Sides of the image in pixels; none for all with a published accuracy.
        int8: Also consider int8 files.
        licence: Globs of allowed licences of the weights; none for all.
        data: Folder of images, one folder per class, to rank the finalists on.
        finalists: How many models to find; None for 1, and 3 with `data`.
        models: Names or globs; none for all models.
        out: Folder of the result, continued if it exists; None for a new one in `runs/pick`.

    Returns:
        The content of `pick.json`: `winner`, `finalists`, `measured`, `commands` and more.

    Raises:
        BadInput: An argument is invalid, or no candidate meets the latency.
        MissingExtra: A package of a runtime is not installed.
    """
    from zoo.picking.pick import pick as search
    from zoo.settings import PickConfig

    return search(
        PickConfig(
            ms=ms,
            top1=top1,
            runtime=[runtime] if isinstance(runtime, str) else list(runtime),
            threads=threads,
            size=[size] if isinstance(size, int) else list(size),
            int8=int8,
            licence=[licence] if isinstance(licence, str) else list(licence),
            data=None if data is None else os.fspath(data),
            finalists=finalists,
            models=[models] if isinstance(models, str) else list(models),
            out=None if out is None else os.fspath(out),
        )
    )


def prune(weights: str | os.PathLike[str], **settings: Any) -> Path:
    """Cut the model of a run until it meets a measured latency; the same as `zoo prune`.

    Args:
        weights: A run folder or a checkpoint of `zoo.train`.
        **settings: Keys of `zoo prune`, such as `latency_ms`; see the top of this module.

    Returns:
        The new run folder.

    Raises:
        ZooError: A setting is invalid, the latency cannot be reached, or the result is not faster;
            nothing was written.
    """
    return composition.run("prune", _words(_settings("prune", weights=weights, **settings)))


def count(model: nn.Module | str, input_size: Sequence[int] | None = None) -> Counts:
    """Count the cost of one forward pass in evaluation mode.

    The model keeps its parameters, its mode and its hooks. A model compiled by `torch.compile` is
    counted as the model that was compiled.

    Args:
        model: Any module whose `forward` takes one tensor, or the name of a model.
        input_size: Shape of that tensor, batch first; None for one image of the model's own size,
            or (1, 3, 224, 224) for a module.

    Raises:
        UncountedOperator: The model runs an operator that has no rule.
        UnknownModel: No model has this name.
        BadInput: `input_size` is not a shape, the model fails on such an input, it is a TorchScript
            module, or its parameters have no values (meta device).
    """
    if not isinstance(model, str):
        return count_module(model, (1, 3, 224, 224) if input_size is None else input_size)
    if input_size is None:
        facts = {} if registry.is_timm(model) else registry.get_spec(model).facts
        input_size = (1, *facts.get("input", {}).get("size", (3, 224, 224)))
    return count_module(create_model(model).eval(), input_size)


def predict(
    artefact: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    batch: int = 8,
    out: str | os.PathLike[str] | None = None,
    gallery: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    tta: str = "none",
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Use an exported file on pictures, like `zoo predict`.

    Args:
        artefact: A file written by `zoo export`, or its folder.
        images: A picture, a folder of pictures, or several of them.
        top: Number of classes, or of similar pictures, per picture.
        batch: Pictures per call.
        out: Folder for the masks of a segmentation model or the drawn boxes of a detector; None
            writes none.
        gallery: A picture, a folder of pictures, or several of them, to search with a retrieval
            model.
        tta: `"flip"` averages the probabilities with those of the mirrored picture.
        threads: Number of threads; None for all cores.

    Returns:
        For each picture its `file`, and its `classes`, its `detections`, its `nearest` or the
        `error`.

    Raises:
        BadInput: The artefact or a path cannot be used.
    """
    from zoo.deploy import predict_files
    from zoo.deploy.predict import Predictor

    searched = None if gallery is None else _files(gallery)
    return list(
        predict_files.predict(
            Predictor(str(artefact), threads, tta=tta),
            _files(images),
            batch_size=batch,
            top=top,
            out=None if out is None else Path(out),
            gallery=searched,
        )
    )


def _files(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return image files, and those in folders."""
    from zoo.deploy.predict_files import list_images

    listed = [given] if isinstance(given, str | os.PathLike) else given
    return list_images([str(entry) for entry in listed])


def report(
    records: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Write tables and a web page of measurements, like `zoo report`.

    Args:
        records: A file that `zoo benchmark` wrote, or its folder.
        out: The folder to write to; None for that of the records.

    Returns:
        The files that were written.

    Raises:
        BadInput: The records cannot be read, or the report cannot be written.
    """
    from zoo.reports.report import write

    return list(write(Path(records), None if out is None else Path(out)))


def _settings(command: str, **arguments: Any) -> dict[str, Any]:
    """Return the dotted keys that arguments set; None for a named argument means not given."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None and name in (*GROUPS, "weights", "models", "export.out"):
            continue
        for key, entry in _entries(command, name, value):
            if key in found:
                raise BadInput(f"{key} is given twice")
            found[key] = entry
    return found


def _entries(command: str, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    key = _key(command, name)
    if isinstance(value, nn.Module):
        raise BadInput(f"{name} is a module; zoo.{command} takes the name of a model")
    if isinstance(value, Mapping) and key not in FREE_KEYS and "." not in key:
        for inner, entry in value.items():
            group_name = inner == "name" and key in GROUPS
            yield (key if group_name else f"{key}.{inner}"), entry
        return
    yield key, value


def _key(command: str, name: str) -> str:
    """Return the dotted key that an argument names."""
    known = keys(command)
    if name in known or name == "experiment" or any(name.startswith(f"{k}.") for k in FREE_KEYS):
        return name
    matches = [key for key in known if key.rpartition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        example = "{" + f'"{matches[0]}": ...' + "}"
        raise BadInput(f"{name} can be {' or '.join(matches)}; name one of them: **{example}")
    near = nearest_key(command, name)
    raise BadInput(
        unknown_value(
            "argument", name, (), where=f" of zoo.{command}", near=near,
            listed_by=f"zoo {command} --help",
        )
    )  # fmt: skip


def _words(settings: Mapping[str, Any]) -> list[str]:
    # Groups first: they are files, which the keys override.
    ordered = sorted(settings, key=lambda key: key not in GROUPS)
    return [setting(key, _plain(settings[key])) for key in ordered]


def _has_several(key: str, values: Any) -> bool:
    """Return whether a value of a sweep is a list of values, each for a run of its own."""
    if not isinstance(values, list | tuple | range):
        return False
    annotation = keys("train").get(key)
    return annotation is not Any and typing.get_origin(annotation) is not list


def _plain(value: Any) -> Any:
    """Return a value with paths as text, and numbers of NumPy or PyTorch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else value


def score(
    model: str,
    images: Tensor | None = None,
    *,
    size: int | None = None,
    count: int = 16,
    repeats: int = 5,
    seed: int = 0,
) -> TrainingFreeScores:
    """Return two scores of an untrained network, which rank networks of one kind.

    Args:
        model: The name of a model with feature maps.
        images: At least two images, B C H W, prepared as in training; None: embedded digits.
        size: Side of the digits, pixels; None: that of the model.
        count: Number of digits.
        repeats: Number of initialisations that the scores are means over.
        seed: Seed of the first one.

    Raises:
        UnknownModel: No model has this name.
        BadInput: An argument has no effect, or the model has no feature maps.
    """
    from zoo.commands import score as command

    return command.score(model, images, size=size, count=count, repeats=repeats, seed=seed)
