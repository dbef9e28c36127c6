"""The registry: from the name of a model to its facts, without importing the model.

The facts of a family (`zoo/facts/<family>.yaml`) list its variants, so that listing models and
reading their facts needs neither torch nor the model's module. `zoo/models/<family>.py` is imported
when one of its variants is built; it calls `register` for each of them.
"""

import copy
import difflib
import fnmatch
import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from zoo.errors import BadInput, UnknownModel, unknown_value
from zoo.hub_files import is_repository

_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Entries that a family file states once for all variants; a variant may override them.
_SHARED = (
    *("task", "status", "paper", "code", "input", "reduction", "num_classes", "capabilities"),
    "module",  # the model file, if its name is not that of the family
    "quirks",  # oddities of the public code: kept or changed, and why
    "unfused",  # norms and scales that fusing leaves in place, and why
)

# Decoders of segmentation_models_pytorch and of zoo.light_decoders. Each takes a backbone as its
# encoder, so they have no facts and `list_models` does not list them.
# fmt: off
DECODERS = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3",
    "deeplabv3plus", "upernet", "segformer", "lraspp", "mobile_deeplabv3",
)
# fmt: on
DETECTORS = ("ssdlite", "retinanet", "fcos")  # likewise, of zoo.detectors
RETRIEVERS = ("mixvpr",)  # likewise, of zoo.retrieval
ON_BACKBONES = (*DECODERS, *DETECTORS, *RETRIEVERS)


@dataclass(frozen=True)
class ModelSpec:
    """Everything known about a model before it is built.

    Attributes:
        name: The registered name.
        family: The facts file and the model module it belongs to.
        facts: Facts of the variant, including those shared by its family.
        tag: Of the published checkpoint that was chosen by `name.tag`; "" for the first.
    """

    name: str
    family: str
    facts: dict[str, Any]
    tag: str = ""

    @property
    def full_name(self) -> str:
        """The name with the tag, as `create_model` takes it."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def task(self) -> str:
        return self.facts["task"]

    @property
    def num_classes(self) -> int:
        """Classes of the published model."""
        return self.facts.get("num_classes", 1000)

    def builder(self) -> Callable[..., Any]:
        """Return the function that builds the model, after importing its module if necessary."""
        if self.name not in _BUILDERS:
            importlib.import_module(f"zoo.models.{self.facts.get('module', self.family)}")
        return _BUILDERS[self.name]

    @property
    def in_chans(self) -> int:
        """Channels of the images that the model was published for."""
        return self.facts.get("input", {}).get("size", (3,))[0]

    @property
    def capabilities(self) -> dict[str, Any]:
        return self.facts.get("capabilities", {})

    @property
    def weights(self) -> list[dict[str, Any]]:
        """Published checkpoints; `pretrained=True` loads the first that has an address."""
        return self.facts.get("weights", [])


TIMM = "timm/"  # prefix of the names of timm's models
PEERS = "peers/timm.yaml"  # recorded figures of some of them, in zoo.facts
_UNKNOWN_FACTS = {"task": "classification"}  # all that is known about them
_BUILDERS: dict[str, Callable[..., Any]] = {}
_THIRD_PARTY: dict[str, ModelSpec] = {}  # registered by other packages, with their own facts


@functools.cache
def _packaged() -> dict[str, ModelSpec]:
    """Return all variants in the facts files, in the order of the files."""
    specs: dict[str, ModelSpec] = {}
    for file in sorted(resources.files("zoo.facts").iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yaml"):
            continue
        family = file.name.removesuffix(".yaml")
        sheet = yaml.load(file.read_text(encoding="utf-8"), Loader=_YamlLoader)
        shared = {key: sheet[key] for key in _SHARED if key in sheet}
        for name, own in sheet["variants"].items():
            if name in specs:
                raise ValueError(
                    f"model {name!r} is listed twice, in {specs[name].family} and in {family}"
                )
            specs[name] = ModelSpec(name, family, _completed(own or {}, shared))
    return specs


@functools.cache
def _peers() -> dict[str, ModelSpec]:
    """Return timm's models with recorded figures, by `timm/<name>.<tag>`.

    The weights that timm loads without a tag are also found by `timm/<name>`.
    """
    text = resources.files("zoo.facts").joinpath(PEERS).read_text(encoding="utf-8")
    sheet = yaml.load(text, Loader=_YamlLoader)
    specs: dict[str, ModelSpec] = {}
    for name, own in sheet["models"].items():
        tag, sizes = name.partition(".")[2], own["sizes"]
        side = own["side"]
        facts = {
            "task": "classification",
            "params": own["params"],
            "input": {"size": [3, side, side]},
            "costs": {n: [row["macs"], row["moved_bytes"]] for n, row in sizes.items()},
            "published": [
                {"source": f"{sheet['source']}, {n} pixels, crop {row['crop']:g}"}
                | {"top1": row["top1"]}
                for n, row in sizes.items()
            ],
            "weights": [
                {"tag": tag, "keys": "timm", "licence": own["licence"]}
                | {"url": f"hf:timm/{name}/model.safetensors"}
            ],
        }
        names = [name, name.partition(".")[0]] if own.get("default") else [name]
        specs |= {TIMM + one: ModelSpec(TIMM + one, "timm", facts) for one in names}
    return specs


def _completed(own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    merged = {**shared, **own}
    for key in ("input", "capabilities"):
        if isinstance(shared.get(key), dict) and isinstance(own.get(key), dict):
            merged[key] = {**shared[key], **own[key]}
    return merged


def _specs() -> dict[str, ModelSpec]:
    return {**_packaged(), **_THIRD_PARTY}


def register(
    name: str, build: Callable[..., Any], *, family: str = "", facts: dict[str, Any] | None = None
) -> None:
    """Register a model, so that `create_model` can build it.

    Args:
        name: The name; a name cannot be registered twice.
        build: Called with the keyword arguments of `create_model`; returns the model.
        family: With `facts`: the family to list the model under.
        facts: Facts of a model from another package; those of our own models are in `zoo/facts`.

    Raises:
        ValueError: The name is taken, or the model has no facts.
    """
    if facts is not None and name in _packaged():
        raise ValueError(f"model {name!r} is part of this package; choose another name")
    if name in _BUILDERS:
        other = _BUILDERS[name]
        raise ValueError(f"model {name!r} is registered twice: by {other!r} and by {build!r}")
    if facts is not None:
        _THIRD_PARTY[name] = ModelSpec(name, family or name, {"task": "classification", **facts})
    elif name not in _packaged():
        raise ValueError(f"model {name!r} has no entry in zoo/facts; add one or pass `facts`")
    _BUILDERS[name] = build


def get_spec(name: str) -> ModelSpec:
    """Return the specification of a model; decoders and timm's models only have a task.

    Raises:
        UnknownModel: No such model; the message suggests the nearest name.
    """
    specs = _specs()
    if name in specs:
        return specs[name]
    bare, _, tag = name.partition(".")
    if tag and bare in specs:
        return _tagged(specs[bare], tag)
    if name in DECODERS:
        return ModelSpec(name, "decoders", {"task": "segmentation"})
    if name in DETECTORS:
        return ModelSpec(name, "detectors", {"task": "detection"})
    if name in RETRIEVERS:
        return ModelSpec(name, "retrievers", {"task": "retrieval"})
    if name in _peers():
        return _peers()[name]
    if is_timm(name):
        return ModelSpec(TIMM + timm_name(name), "timm", dict(_UNKNOWN_FACTS))
    if is_repository(name):
        raise UnknownModel(
            f"{name} is a repository, which zoo.create_model takes; a command takes it as weights:"
            f" weights={name}, or to train model=<its architecture> model.checkpoint_path={name}"
        )
    choices = [*specs, *ON_BACKBONES]
    raise UnknownModel(unknown_value("model", name, choices, listed_by="zoo.list_models()"))


def _tagged(spec: ModelSpec, tag: str) -> ModelSpec:
    """Return a model with one of its published checkpoints, and that checkpoint's facts."""
    entry = next((entry for entry in spec.weights if entry["tag"] == tag), None)
    if entry is None:
        tags = [entry["tag"] for entry in spec.weights]
        raise UnknownModel(unknown_value("tag", tag, tags, where=f" of {spec.name}"))
    own = {"input": entry.get("input", {}), "weights": [entry]}
    own |= {"num_classes": entry["classes"]} if "classes" in entry else {}
    return ModelSpec(spec.name, spec.family, _completed(own, spec.facts), tag)


def is_peer(name: str) -> bool:
    """Return whether `name` is a model of timm with recorded figures, `"timm/<name>[.<tag>]"`."""
    return is_timm(name) and name in _peers()


def is_timm(name: str) -> bool:
    """Return whether `name` names a timm model, `"timm/<name>"`."""
    return name.startswith(TIMM)


def timm_name(name: str) -> str:
    """Return timm's own name of `"timm/<name>"`.

    Raises:
        UnknownModel: timm has no such model; the message suggests the nearest name.
    """
    import timm  # takes seconds; listing our own models does without it

    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare):
        near = difflib.get_close_matches(bare.split(".")[0], timm.list_models(), n=1)
        raise UnknownModel(
            unknown_value(
                "model",
                name,
                (),
                near=TIMM + near[0] if near else None,
                listed_by="timm.list_models()",
            )
        )
    return bare


def _timm_names() -> list[str]:
    import timm  # takes seconds; listing our own models does without it

    return [TIMM + name for name in timm.list_models()]


def is_packaged(name: str) -> bool:
    """Return whether a model is part of this package, with complete facts and contract."""
    return name.partition(".")[0] in _packaged()


def is_model(name: str) -> bool:
    """Return whether a model is registered, with or without the tag of a checkpoint."""
    specs = _specs()
    return name in specs or name.partition(".")[0] in specs


def list_models(
    filter: str | Iterable[str] = "",
    *,
    exclude: str | Iterable[str] = (),
    task: str | None = None,
    family: str | None = None,
    pretrained: bool | None = None,
    smallest_of_family: bool = False,
    peers: bool = False,
    **capabilities: Any,
) -> list[str]:
    """List registered names in alphabetical order, without importing or building a model.

    Args:
        filter: A glob such as `"mobilenet*"`, or several of which one must match. `"timm/*"`
            matches timm's models, which nothing else does.
        exclude: A glob, or several of which none may match.
        task: `"classification"`, `"segmentation"`, `"super-resolution"`.
        family: Only variants of this family.
        pretrained: Only models with (or without) a published checkpoint that can be downloaded.
        smallest_of_family: Only the variant with the fewest parameters in each family.
        peers: Also timm's models with recorded figures, as `timm/<name>.<tag>`.
        **capabilities: Only models whose facts state these capabilities, such as `onnx=True`.

    Raises:
        BadInput: The task, the family or a capability is unknown; the message suggests the nearest.
    """
    _check_filters(task, family, capabilities)
    included = [filter] if isinstance(filter, str) else list(filter)
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)

    def keep(spec: ModelSpec) -> bool:
        return (
            (not any(included) or any(fnmatch.fnmatch(spec.name, glob) for glob in included))
            and not any(fnmatch.fnmatch(spec.name, glob) for glob in excluded)
            and (task is None or spec.task == task)
            and (family is None or spec.family == family)
            and (pretrained is None or is_pretrained(spec) == pretrained)
            and all(
                spec.capabilities.get(key, False) == value for key, value in capabilities.items()
            )
        )

    specs = list(_specs().values())
    if peers:
        specs += [spec for name, spec in _peers().items() if "." in name]
    if any(map(is_timm, included)):
        unknown = {name: ModelSpec(name, "timm", dict(_UNKNOWN_FACTS)) for name in _timm_names()}
        specs += [_peers().get(name, spec) for name, spec in unknown.items()]
    kept = [spec for spec in specs if keep(spec)]
    if smallest_of_family:
        smallest: dict[str, ModelSpec] = {}
        for spec in sorted(kept, key=lambda spec: spec.facts.get("params", 0)):
            smallest.setdefault(spec.family, spec)
        kept = list(smallest.values())
    return sorted(spec.name for spec in kept)


def _check_filters(task: str | None, family: str | None, capabilities: Iterable[str]) -> None:
    """Raise `BadInput` for a filter that no model could pass."""
    specs = _specs().values()
    if task is not None and task not in (tasks := {spec.task for spec in specs}):
        raise BadInput(unknown_value("task", task, sorted(tasks)))
    families = {spec.family for spec in specs} | {"timm"}
    if family is not None and family not in families:
        raise BadInput(unknown_value("family", family, sorted(families)))
    known = {key for spec in specs for key in spec.capabilities}
    for key in capabilities:
        if key not in known:
            raise BadInput(unknown_value("filter of list_models", key, sorted(known)))


def is_pretrained(spec: ModelSpec) -> bool:
    """Return whether the facts have the address of a checkpoint."""
    return any("url" in entry for entry in spec.weights)


def model_info(name: str) -> dict[str, Any]:
    """Return the facts of a model: paper, licence, params, MACs, top-1, weights, capabilities.

    Raises:
        UnknownModel: No such model.
    """
    spec = get_spec(name)
    return {"name": spec.full_name, "family": spec.family, **copy.deepcopy(spec.facts)}
