"""What `export.py` does: build the asked model, load its weights, export, say how it went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import nn

from zoo.blocks.sizes import pair
from zoo.config import model_arguments
from zoo.errors import BadInput, BadWeights
from zoo.exporters.manifest import Origin
from zoo.exporters.pipeline import Artefact, export, get_format
from zoo.factory import create_model
from zoo.inputs import own_input
from zoo.profiling.latency import measure
from zoo.weights import load_weights, local_file, read_checkpoint, run_checkpoint


def run(cfg: Any, overrides: Sequence[str] | None = None) -> Artefact:
    """Export as the configuration of `export.py` says, and print what was made.

    Args:
        cfg: The configuration.
        overrides: What of it was asked for; by default what the command line says. A checkpoint
            of `train.py` brings its own model; another one that was asked for is an error.

    Raises:
        ZooError: Something asked cannot work, or the artefact does not compute what the model does.
    """
    get_format(cfg.format)
    batch = _batch(cfg.export.batch)
    wanted = OmegaConf.to_container(cfg.export).get("image_size")  # type: ignore[union-attr]
    size = None if wanted is None else pair(wanted, "export.image_size")
    model, origin = build(cfg, overrides)
    artefact = export(
        model,
        cfg.format,
        cfg.export.out or Path("artefacts") / str(origin.name) / cfg.format,
        input_size=(batch or 1, *_image(model, origin, size)),
        dynamic_batch=batch is None,
        opset=cfg.export.opset,
        fuse=cfg.export.fuse,
        overwrite=cfg.export.overwrite,
        origin=origin,
    )
    _say(artefact, cfg)
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
    model = create_model(**arguments).eval()
    load_weights(model, cfg.weights)
    name = arguments.pop("name")
    data = data if stated and isinstance(data, dict) else {}
    return model, Origin(
        name=name,
        args=arguments,
        weights=_file(cfg.weights),
        class_names=data.get("class_names"),
        preprocessing=data.get("preprocessing") or {},
    )


def _names_model(overrides: Sequence[str] | None) -> bool:
    """Say whether the model was asked for, or is there by default."""
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(word.split("=")[0] in ("model", "model.name") for word in overrides)


def _file(source: str) -> Path:
    path = local_file(source)
    return run_checkpoint(path) if path.is_dir() else path


def _batch(value: Any) -> int | None:
    """Read `export.batch`: None stands for any."""
    if value == "dynamic":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"export.batch={value!r} must be dynamic or a number of images")
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
    sides = size or known[1:]
    return getattr(model, "in_chans", None) or (known[0] if known else 3), *sides


def _latency(artefact: Artefact) -> str:
    """Time the artefact in the runtime that it was compared in, on one image if it may."""
    batch, *rest = artefact.manifest["input"]["shape"]
    size = (batch if isinstance(batch, int) else 1, *rest)
    runtime = artefact.manifest["comparison"]["runtime"]
    found = measure(artefact.path, size, runtime, min_runs=6, min_time=0.3, max_time=3)
    images = f"{size[0]} image" + ("s" if size[0] > 1 else "")
    threads = f"{found.threads} thread" + ("s" if found.threads > 1 else "")
    return (
        f"latency of {images} in {runtime}, {threads}: median {found.p50_ms:.2f} ms, "
        f"p90 {found.p90_ms:.2f} ms of {found.n} calls"
    )


def _say(artefact: Artefact, cfg: Any) -> None:
    made, model = artefact.manifest["artefact"], artefact.manifest["model"]
    fused = "fused" if model["fused"] else "unfused"
    fresh = cfg.weights is None and not cfg.model.pretrained and not cfg.model.checkpoint_path
    weights = ", fresh weights" if fresh else ""
    shape = "x".join(map(str, artefact.manifest["input"]["shape"]))
    print(
        f"{model['name']} ({fused}{weights}) -> {artefact.path}: {made['bytes'] / 2**20:.1f} MiB, "
        f"input {shape}, opset {made['opset']}, {made['nodes']} nodes"
    )
    print(artefact.agreement)
    print(_latency(artefact))
    print(f"described in {artefact.manifest_path}")
