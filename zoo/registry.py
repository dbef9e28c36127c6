"""Name -> specification of a model, without importing a single model.

The facts of a family (`zoo/facts/<family>.yaml`) name its variants, so listing models and reading
their facts needs neither torch nor the model's module. `zoo/models/<family>.py` is imported when
one of its variants is built; it calls `register` once for each of them.
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

from zoo.errors import UnknownModel

_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What a family file says once for all of its variants; a variant may say any of them differently.
_SHARED = (
    *("task", "status", "paper", "code", "input", "reduction", "num_classes", "capabilities"),
    "quirks",  # what is odd in the public code: kept, or changed, and why
    "unfused",  # norms and scales that fusing leaves in place, and why
)

# Decoders of segmentation_models_pytorch (zoo.decoders): each takes any backbone as its encoder, so
# there are no facts of them and `list_models` leaves them out.
# fmt: off
DECODERS = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3",
    "deeplabv3plus", "upernet", "segformer",
)
# fmt: on


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before it is built.

    Attributes:
        name: The registered name.
        family: The facts file and the model module it belongs to.
        facts: The variant's facts, completed by those that its family shares.
    """

    name: str
    family: str
    facts: dict[str, Any]

    @property
    def task(self) -> str:
        return self.facts["task"]

    @property
    def num_classes(self) -> int:
        """Classes that the published model tells apart."""
        return self.facts.get("num_classes", 1000)

    @property
    def in_chans(self) -> int:
        """Channels of the images that the model was published for."""
        return self.facts.get("input", {}).get("size", (3,))[0]

    @property
    def capabilities(self) -> dict[str, Any]:
        return self.facts.get("capabilities", {})

    @property
    def weights(self) -> list[dict[str, Any]]:
        """Published checkpoints, the one that `pretrained=True` takes first."""
        return self.facts.get("weights", [])


TIMM = "timm/"  # prefix of the names of timm's models
_BUILDERS: dict[str, Callable[..., Any]] = {}
_THIRD_PARTY: dict[str, ModelSpec] = {}  # models registered by other packages, with their own facts


@functools.cache
def _packaged() -> dict[str, ModelSpec]:
    """Every variant of every facts file of the package, in alphabetical order."""
    specs: dict[str, ModelSpec] = {}
    for file in sorted(resources.files("zoo.facts").iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yaml"):
            continue
        family = file.name.removesuffix(".yaml")
        sheet = yaml.load(file.read_text(encoding="utf-8"), Loader=_YamlLoader)
        shared = {key: sheet[key] for key in _SHARED if key in sheet}
        for name, own in sheet["variants"].items():
            if name in specs:
                raise ValueError(f"facts name {name!r} twice: {specs[name].family} and {family}")
            specs[name] = ModelSpec(name, family, _completed(own or {}, shared))
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
    """Make `name` known to `create_model`.

    Args:
        name: The name; registering one twice is an error.
        build: Called with the keyword arguments of `create_model`; returns the model.
        family: Needed with `facts`: what to group the model under.
        facts: Facts of a model from outside the package; the package's own stand in `zoo/facts`.

    Raises:
        ValueError: The name is taken, or nothing states the facts of the model.
    """
    if facts is not None and name in _packaged():
        raise ValueError(f"model {name!r} is one of the package's own; take another name")
    if name in _BUILDERS:
        other = _BUILDERS[name]
        raise ValueError(f"model {name!r} is registered twice: by {other!r} and by {build!r}")
    if facts is not None:
        _THIRD_PARTY[name] = ModelSpec(name, family or name, {"task": "classification", **facts})
    elif name not in _packaged():
        raise ValueError(f"model {name!r} has no entry in zoo/facts; add one or pass `facts`")
    _BUILDERS[name] = build


def get_spec(name: str) -> ModelSpec:
    """Return the specification of `name`; that of a decoder says its task alone.

    Raises:
        UnknownModel: No such model; the message suggests the nearest names.
    """
    specs = _specs()
    if name in specs:
        return specs[name]
    if name in DECODERS:
        return ModelSpec(name, "decoders", {"task": "segmentation"})
    near = difflib.get_close_matches(name, [*specs, *DECODERS], n=3)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"zoo.list_models() shows the {len(specs)} there are"
    )
    raise UnknownModel(f"no model named {name!r}; {hint}")


def get_builder(name: str) -> Callable[..., Any]:
    """Import the module of `name`, if need be, and return what builds the model."""
    spec = get_spec(name)
    if name not in _BUILDERS:
        importlib.import_module(f"zoo.models.{spec.family}")
    return _BUILDERS[name]


def is_timm(name: str) -> bool:
    """Say whether `name` is that of a timm model, `"timm/<name>"`."""
    return name.startswith(TIMM)


def timm_name(name: str) -> str:
    """Return timm's own name of `"timm/<name>"`.

    Raises:
        UnknownModel: timm has no such model; the message suggests the nearest names.
    """
    import timm  # takes seconds; listing our own models does without it

    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare):
        near = difflib.get_close_matches(bare.split(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(TIMM + name for name in near)}?" if near else ""
        raise UnknownModel(f"timm has no model {bare!r}{hint}")
    return bare


def is_packaged(name: str) -> bool:
    """Say whether `name` is one of the package's own, whose facts and contract are complete."""
    return name in _packaged()


def is_model(name: str) -> bool:
    """Say whether `name` is registered."""
    return name in _specs()


def list_models(
    filter: str | Iterable[str] = "",
    *,
    exclude: str | Iterable[str] = (),
    task: str | None = None,
    family: str | None = None,
    pretrained: bool | None = None,
    smallest_of_family: bool = False,
    **capabilities: Any,
) -> list[str]:
    """List registered names in alphabetical order; no model is built or imported.

    Args:
        filter: A glob, or several of which one must match: `"mobilenet*"`.
        exclude: A glob, or several of which none may match.
        task: `"classification"`, `"segmentation"`, `"super-resolution"`.
        family: Only variants of this family.
        pretrained: Only models that have (or have not) a published checkpoint that can be fetched.
        smallest_of_family: Only the variant with the fewest parameters in each family.
        **capabilities: Only models whose facts state these, such as `onnx=True`.
    """
    wanted = [filter] if isinstance(filter, str) else list(filter)
    unwanted = [exclude] if isinstance(exclude, str) else list(exclude)

    def keep(spec: ModelSpec) -> bool:
        return (
            (not any(wanted) or any(fnmatch.fnmatch(spec.name, glob) for glob in wanted))
            and not any(fnmatch.fnmatch(spec.name, glob) for glob in unwanted)
            and (task is None or spec.task == task)
            and (family is None or spec.family == family)
            and (pretrained is None or is_pretrained(spec) == pretrained)
            and all(
                spec.capabilities.get(key, False) == value for key, value in capabilities.items()
            )
        )

    kept = [spec for spec in _specs().values() if keep(spec)]
    if smallest_of_family:
        smallest: dict[str, ModelSpec] = {}
        for spec in sorted(kept, key=lambda spec: spec.facts.get("params", 0)):
            smallest.setdefault(spec.family, spec)
        kept = list(smallest.values())
    return sorted(spec.name for spec in kept)


def is_pretrained(spec: ModelSpec) -> bool:
    """Say whether facts give a checkpoint of `spec` that a program can fetch."""
    return any("url" in entry for entry in spec.weights)


def model_info(name: str) -> dict[str, Any]:
    """Return the facts of a model: paper, licence, params, MACs, top-1, weights, capabilities.

    Raises:
        UnknownModel: No such model.
    """
    spec = get_spec(name)
    return {"name": spec.name, "family": spec.family, **copy.deepcopy(spec.facts)}
