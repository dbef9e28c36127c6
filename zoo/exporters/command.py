"""What `export.py` does: build the asked model, load its weights, export, say how it went."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import nn

from zoo.blocks.sizes import pair
from zoo.config import model_arguments
from zoo.errors import BadInput, BadWeights, ZooError
from zoo.exporters import formats, prepared
from zoo.exporters.formats import get_format
from zoo.exporters.manifest import Origin
from zoo.exporters.pipeline import Artefact, export
from zoo.factory import create_model
from zoo.inputs import own_input
from zoo.profiling.latency import measure
from zoo.weights import load_weights, local_file, read_checkpoint, run_checkpoint

# Keys of the group `export` that are arguments of `zoo.export`.
OPTIONS = ("dynamic_size", "opset", "half", "preprocess", "postprocess", "fuse", "overwrite")


@dataclass(frozen=True)
class Request:
    """One artefact that is asked for.

    Attributes:
        model: In evaluation mode, with its weights.
        origin: Where it comes from.
        format: What it is exported to.
        path: Where the artefact goes.
        options: The other arguments of `zoo.export`.
        cfg: The configuration.
    """

    model: nn.Module
    origin: Origin
    format: str
    path: Path
    options: dict[str, Any]
    cfg: Any


def run(cfg: Any, overrides: Sequence[str] | None = None) -> list[Artefact]:
    """Export as the configuration of `export.py` says, and print what was made.

    Args:
        cfg: The configuration.
        overrides: What of it was asked for; by default what the command line says. A checkpoint
            of `train.py` brings its own model; another one that was asked for is an error.

    Raises:
        ZooError: Something asked cannot work, or the artefact does not compute what the model does.
    """
    return each(cfg, overrides, _export)


def each(
    cfg: Any,
    overrides: Sequence[str] | None,
    make: Callable[[Request], Artefact],
    check: Callable[[str], None] = lambda format: None,
) -> list[Artefact]:
    """Make an artefact in each format that the configuration asks for.

    Of several formats each is tried; those that failed are named in the end.

    Args:
        cfg: The configuration of `export.py`.
        overrides: See `run`.
        make: Makes one.
        check: Refuses a format, by name, before a model is built.

    Raises:
        ZooError: Something asked cannot work, or `make` said so.
    """
    names = _formats(cfg.format)
    batch = _batch(cfg.export.batch)
    wanted = OmegaConf.to_container(cfg.export).get("image_size")  # type: ignore[union-attr]
    size = None if wanted is None else pair(wanted, "export.image_size")
    if len(names) == 1:
        check(names[0])
        _check(names[0], batch, cfg.export)
    model, origin = build(cfg, overrides)
    shape = (batch if isinstance(batch, int) else 1, *_image(model, origin, size))
    options = {
        "input_size": shape,
        "dynamic_batch": None if batch is None else batch == "dynamic",
        **{key: cfg.export[key] for key in OPTIONS},
        "origin": origin,
    }
    made, failed = [], []
    for name in names:
        try:
            check(name)
            _check(name, batch, cfg.export)
            path = _place(cfg.export.out, origin, name, len(names) > 1)
            made.append(make(Request(model, origin, name, path, options, cfg)))
        except ZooError as error:
            if len(names) == 1:
                raise
            failed.append((name, error))
    if failed:
        said = "; ".join(f"{name}: {error}" for name, error in failed)
        raise type(failed[0][1])(f"{len(failed)} of {len(names)} formats failed: {said}")
    return made


def _check(name: str, batch: int | str | None, asked: Any) -> None:
    """Refuse what the format cannot do before a model is built."""
    formats.check(
        name,
        dynamic_batch=batch == "dynamic",
        dynamic_size=asked.dynamic_size,
        preprocess=asked.preprocess,
        opset=asked.opset,
    )


def _place(out: str | None, origin: Origin, name: str, several: bool) -> Path:
    if not out:
        return Path("artefacts") / str(origin.name) / name
    return Path(out) / name if several else Path(out)


def _export(request: Request) -> Artefact:
    artefact = export(request.model, request.format, request.path, **request.options)
    say_file(artefact, request.cfg)
    if artefact.agreement is None:
        print(f"not compared: {artefact.manifest['comparison']['why']}")
    else:
        print(artefact.agreement)
        print(_latency(artefact))
    print(f"described in {artefact.manifest_path}")
    return artefact


def build(cfg: Any, overrides: Sequence[str] | None = None) -> tuple[nn.Module, Origin]:
    """Build the asked model in evaluation mode, with the asked weights.

    A checkpoint of `train.py` states its model with all arguments, its classes and how its images
    were prepared; arguments that the configuration sets differently from its defaults go first.

    Raises:
        BadInput: Weights are asked for in two ways.
        BadWeights: The weights cannot be read, or are those of another model.
    """
    asked = model_arguments(cfg.model)
    if cfg.weights is None:
        model = create_model(**asked).eval()
        name = asked.pop("name")
        given = asked.get("checkpoint_path")
        return model, Origin(name, asked, weights=None if given is None else _file(given))
    for key in ("pretrained", "checkpoint_path"):
        if asked.get(key):
            raise BadInput(f"model.{key} and weights both name weights; leave one out")
    content = read_checkpoint(cfg.weights)
    stated, data = content.get("model"), content.get("data")
    stated = stated if isinstance(stated, dict) and "name" in stated else {}
    if stated and not _names_model(overrides):
        asked["name"] = stated["name"]
    if stated and stated["name"] != asked["name"]:
        raise BadWeights(
            f"{cfg.weights} is a checkpoint of {stated['name']}, not of {asked['name']}; "
            f"leave model out, or give model={stated['name']}"
        )
    arguments = {**stated, **asked}
    if prepared.KEY in content:
        model = _trained_for_int8(cfg, content, arguments)
    else:
        model = create_model(**arguments).eval()
        load_weights(model, cfg.weights)
    name = arguments.pop("name")
    data = data if stated and isinstance(data, dict) else {}
    config = content.get("config") if stated else None
    return model, Origin(
        name=name,
        args=arguments,
        weights=_file(cfg.weights),
        class_names=data.get("class_names"),
        preprocessing=data.get("preprocessing") or {},
        data=config.get("data") if isinstance(config, dict) else None,
    )


def _trained_for_int8(cfg: Any, content: dict[str, Any], arguments: dict[str, Any]) -> nn.Module:
    """Build what `train.qat=true` trained, with its weights in int8."""
    if cfg.quantize.int8:
        raise BadInput(
            f"{cfg.weights} was trained with train.qat and is exported in int8 by itself; leave "
            "quantize.int8 out"
        )
    changed = [key for key, value in content["model"].items() if arguments.get(key, value) != value]
    if changed:
        raise BadInput(f"model.{changed[0]} differs from that of {cfg.weights}; leave it out")
    return prepared.converted(prepared.rebuild(content, str(cfg.weights)))


def _names_model(overrides: Sequence[str] | None) -> bool:
    """Say whether the model was asked for, or is there by default."""
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(word.split("=")[0] in ("model", "model.name") for word in overrides)


def _file(source: str) -> Path:
    path = local_file(source)
    return run_checkpoint(path) if path.is_dir() else path


def _formats(value: Any) -> list[str]:
    """Read `format`: one, or a list without repetitions."""
    names = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not names:
        raise BadInput("format=[] names no format")
    for name in names:
        get_format(name)
    return list(dict.fromkeys(names))


def _batch(value: Any) -> int | str | None:
    """Read `export.batch`: None leaves the batch open where the format can."""
    if value is None or value == "dynamic":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"export.batch={value!r} must be null, dynamic or a number of images")
    return value


def _image(model: nn.Module, origin: Origin, size: tuple[int, int] | None) -> tuple[int, ...]:
    known = origin.preprocessing.get("size") or own_input(model, origin.name)["size"]
    if size is None and known is None:
        raise BadInput(f"{origin.name} states no size of its own; give export.image_size")
    if size is not None and known is not None and len(known) != 3:
        raise BadInput(
            f"export.image_size={list(size)}: {origin.name} takes volumes; leave it out for "
            f"{known[1:]}, or call zoo.export with input_size"
        )
    sides = size or (known or [])[1:]
    return getattr(model, "in_chans", None) or (known[0] if known else 3), *sides


def _latency(artefact: Artefact) -> str:
    """Time the artefact in the runtime that it was compared in, on one image if it may."""
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


def say_file(artefact: Artefact, cfg: Any) -> None:
    """Print what was made of what."""
    made, model = artefact.manifest["artefact"], artefact.manifest["model"]
    fused = "fused" if model["fused"] else "unfused"
    weights = ", fresh weights" if is_fresh(cfg) else ""
    shape = "x".join(map(str, artefact.manifest["input"]["shape"]))
    opset = f", opset {made['opset']}" if "opset" in made else ""
    nodes = f", {made['nodes']} nodes" if "nodes" in made else ""
    print(
        f"{model['name']} ({fused}{weights}) -> {artefact.path}: {made['bytes'] / 2**20:.1f} MiB, "
        f"input {shape}{opset}{nodes}"
    )


def is_fresh(cfg: Any) -> bool:
    """Say whether the configuration names no weights."""
    return cfg.weights is None and not cfg.model.pretrained and not cfg.model.checkpoint_path
