"""A model in a repository of the Hugging Face hub, in timm's layout: `hf-hub:owner/name`.

`config.json` names the architecture and its arguments, the classes and the preprocessing;
`model.safetensors` has the weights. What a repository says is checked before anything is built.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo import hub_files, registry, tensor_files
from zoo.download import Sums
from zoo.errors import BadInput, BadWeights, shown
from zoo.inputs import IMAGENET_MEAN, IMAGENET_STD, published_input

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that a repository has
BRIDGED = "zoo_"  # prefix of our names in timm; see zoo.timm_bridge
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LARGEST = 16_000_000  # bytes of a configuration; class names are most of it
# Tasks of models whose weights have no row for each class.
_WITHOUT_CLASSES = ("super-resolution", "restoration", "retrieval")
_MOST_CHANNELS, _MOST_PIXELS = 4096, 65536
# Arguments that would read other files, or build something else than the model of the weights.
_NOT_OF_THE_MODEL = {
    *("name", "pretrained", "checkpoint_path", "features_only", "out_indices", "num_classes"),
    *("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir", "device"),
    *("dtype", "scriptable", "exportable", "no_jit"),
}


def plain_name(name: str) -> str:
    """Return `owner/name` of a repository, and `@revision` if there is one.

    Raises:
        BadInput: The name is malformed.
    """
    bare = name.partition(":")[2] if hub_files.is_repository(name) else name
    repository, at, revision = bare.partition("@")
    usable = _REPOSITORY.fullmatch(repository) and ".." not in repository
    if not usable or (at and not re.fullmatch(r"[\w./-]+", revision, re.ASCII)):
        raise BadInput(f"{shown(name)} is not a repository of the hub; give hf-hub:owner/name")
    return bare


def read(
    name: str,
    sha256: str | None = None,
    *,
    cache_dir: str | Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Fetch a repository, and return the file of its weights and a description of its model.

    Args:
        name: `hf-hub:owner/name`, or `hf-hub:owner/name@revision`.
        sha256: Expected hash of the weights; its first digits are enough.
        cache_dir: Folder of downloaded files; None for that of the hub's client.

    Returns:
        The file, and the entries `state_dict`, `model` and `data` of a checkpoint of `train.py`.

    Raises:
        BadInput: The name is malformed.
        BadWeights: The repository cannot be fetched, is of an unknown architecture, or its files
            contradict each other.
    """
    repository, _, revision = plain_name(name).partition("@")
    sums = Sums(sha256)
    fetch = functools.partial(
        hub_files.fetch, repository, revision=revision or None, cache_dir=cache_dir
    )
    try:
        config = _json(fetch(CONFIG), name)
        path, state = _weights(fetch)
    except hub_files.NoSuchFile as error:
        raise BadWeights(
            f"{name} is not a repository of an image model: it does not exist, or it has no"
            f" {CONFIG} or neither of {' and '.join(WEIGHTS)}"
        ) from error
    except hub_files.HubProblem as error:
        raise BadWeights(
            f"{name} cannot be fetched: {str(error).rstrip('.')}; look at"
            f" https://huggingface.co/{repository}"
        ) from error
    if misfit := sums.misfit(path):
        raise BadWeights(f"{name}: {path.name} {misfit}")
    return path, {"state_dict": state, **described(config, name, state)}


def _weights(fetch: Callable[..., Path]) -> tuple[Path, dict[str, Any]]:
    """Return the file of the weights and its content; a damaged file is fetched again."""
    file = WEIGHTS[0]
    try:
        path = fetch(file)
    except hub_files.NoSuchFile:
        path = fetch(file := WEIGHTS[1])
    try:
        return path, tensor_files.read(path)
    except BadWeights:
        path = fetch(file, refresh=True)
    return path, tensor_files.read(path)


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadWeights(f"{name}: {CONFIG} cannot be read ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise BadWeights(f"{name}: {CONFIG} is not an object")
    return config


def described(
    config: Mapping[str, Any], name: str, state: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the arguments of the model, and its classes and preprocessing.

    Args:
        config: The content of `config.json`; older files of timm have `pretrained_cfg` at the top.
        name: Name of the repository, for messages.
        state: The weights.

    Raises:
        BadWeights: An entry is missing or invalid, or contradicts the weights.
    """
    check = _Entries(name)
    cfg = check.table(config.get("pretrained_cfg", config), "pretrained_cfg")
    model = _model_of(config.get("architecture"), name)
    spec = registry.get_spec(model)
    published = published_input(model)
    args = _arguments(check.table(config.get("model_args", {}), "model_args"), check)
    size = cfg.get("input_size", published["size"] or [3, 224, 224])
    size = check.numbers(size, "input_size", 3, lambda n: type(n) is int and 1 <= n < _MOST_PIXELS)
    channels = args.get("in_chans", size[0])
    if type(channels) is not int or not 1 <= channels <= _MOST_CHANNELS:
        raise check.wrong("in_chans", channels, "a number of channels")
    size = [channels, *size[1:]]
    classes = config.get("num_classes", cfg.get("num_classes", spec.num_classes))
    if type(classes) is not int or classes < 0:
        raise check.wrong("num_classes", classes, "a number of classes")
    if classes and spec.task not in _WITHOUT_CLASSES and not _has_rows(state, classes):
        raise BadWeights(f"{name}: {CONFIG} has {classes} classes, but the weights have others")
    statistics = {}
    for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        known = published[key] or default
        known = known if len(known) == channels else [sum(known) / len(known)] * channels
        least = 0.0 if key == "std" else float("-inf")
        statistics[key] = check.numbers(
            cfg.get(key, known), key, channels, lambda n, least=least: _is_number(n) and n > least
        )
    crop = cfg.get("crop_pct", published["crop_pct"] or 0.875)
    if not _is_number(crop) or not 0.01 <= crop <= 100:
        raise check.wrong("crop_pct", crop, "a number above 0")
    interpolation = cfg.get("interpolation", published["interpolation"] or "bicubic")
    if interpolation not in INTERPOLATIONS:
        raise check.wrong("interpolation", interpolation, f"one of {', '.join(INTERPOLATIONS)}")
    order = config.get("channel_order", "RGB")  # timm only has models of RGB
    if order not in ("RGB", "BGR"):
        raise check.wrong("channel_order", order, "RGB or BGR")
    preprocessing: dict[str, Any] = {
        "size": size,
        "crop_pct": crop,
        "interpolation": interpolation,
        **statistics,
        "channel_order": order,
    }
    names = _class_names(config.get("label_names", cfg.get("label_names")), classes, check)
    return {
        "model": {"name": model, "num_classes": classes, "in_chans": channels, **args},
        "data": {"num_classes": classes, "class_names": names, "preprocessing": preprocessing},
    }


class _Entries:
    """Checks of the entries of a configuration.

    Args:
        name: Name of the repository, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def wrong(self, key: str, value: Any, wanted: str) -> BadWeights:
        """Return the error for an invalid entry."""
        text = " ".join(repr(value).split())
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return BadWeights(f"{self.name}: {key}={text} in {CONFIG} must be {wanted}")

    def table(self, value: Any, key: str) -> dict[str, Any]:
        """Return a JSON object without its empty entries."""
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        return {str(inner): entry for inner, entry in value.items() if entry is not None}

    def numbers(self, value: Any, key: str, count: int, fits: Callable[[Any], bool]) -> list[Any]:
        """Return a list of numbers."""
        if not isinstance(value, list) or len(value) != count or not all(map(fits, value)):
            raise self.wrong(key, value, f"a list of {count} valid numbers")
        return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


def _has_rows(content: Mapping[str, Any], count: int) -> bool:
    """Return whether a tensor in a file of weights has one row for each class."""
    return any(
        _has_rows(entry, count)
        if isinstance(entry, Mapping)
        else tuple(getattr(entry, "shape", ()))[:1] == (count,)
        for entry in content.values()
    )


def _model_of(architecture: Any, name: str) -> str:
    """Return our name of an architecture: ours, timm's, or that of a model on a backbone."""
    if not isinstance(architecture, str) or not architecture:
        raise BadWeights(
            f"{name}: {CONFIG} names no architecture, so it is not an image model of timm or zoo"
        )
    bare = architecture.removeprefix(BRIDGED)
    if registry.is_model(bare) or bare in registry.ON_BACKBONES:
        return bare.partition(".")[0]
    import timm  # takes seconds

    if not timm.is_model(architecture):
        raise BadWeights(
            f"{name}: neither zoo nor timm has the architecture {shown(architecture[:100])}; it may"
            " need a newer version: pip install -U zoo-vision timm"
        )
    return registry.TIMM + architecture.partition(".")[0]


def _arguments(args: dict[str, Any], check: _Entries) -> dict[str, Any]:
    for key, value in args.items():
        if key in _NOT_OF_THE_MODEL or not key.isidentifier() or not _is_plain(value):
            raise check.wrong(f"model_args.{key}", value, "a plain argument of the architecture")
    if "encoder" in args:
        _model_of(str(args["encoder"]).removeprefix(registry.TIMM), check.name)
    return args


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(entry, depth - 1) for entry in value)
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(entry, depth - 1) for entry in value.values())
    return isinstance(value, str | bool) or (type(value) in (int, float) and abs(value) < 1e6)


def _class_names(names: Any, classes: int, check: _Entries) -> list[str] | None:
    """Return the name of each class; timm has them as a list, or by number."""
    if names is None:
        return None
    if isinstance(names, Mapping):
        names = [names.get(str(number)) for number in range(len(names))]
    usable = isinstance(names, list) and len(names) == classes
    if not usable or not all(isinstance(name, str) and len(name) <= 1000 for name in names):
        raise check.wrong("label_names", names, f"a list of {classes} names")
    return names
