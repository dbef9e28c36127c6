"""The candidates of a search: models with a published accuracy and weights that can be fetched."""

import fnmatch
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from zoo import registry, runtimes
from zoo.compression import int8
from zoo.errors import BadInput
from zoo.profiling.plan import resolve_names
from zoo.reports import figures
from zoo.reports.pareto import published
from zoo.settings import PickConfig

NOT_STATED = "not stated"
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "executorch": "executorch"}
# Points of top-1 by which a float model must be worse before its int8 rival is preferred. What int8
# really costs depends on the model: `zoo export quantize.int8=true` measures it.
INT8_LOSS = 0.5
_DEFAULT_RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Candidate:
    """A model at one image size, in one runtime and precision.

    Attributes:
        model: Name for `zoo.create_model`.
        family: Models of a family are built alike.
        size: Side of the image in pixels.
        top1: Published accuracy on ImageNet-1k at this size, in percent; of the float weights.
        source: Where it was published.
        licence: Of the weights that `pretrained=True` loads.
        macs: Multiply-accumulates for one image.
        moved_bytes: Bytes that the operators read and write for one image.
        runtime: Name of a runtime.
        int8: Whether the weights are int8.
    """

    model: str
    family: str
    size: int
    top1: float
    source: str
    licence: str
    macs: int
    moved_bytes: int
    runtime: str
    int8: bool

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        """Size of the input, B C H W."""
        return (1, 3, self.size, self.size)

    @property
    def value(self) -> float:
        """The accuracy to rank by: published, less `INT8_LOSS` in int8."""
        return self.top1 - (INT8_LOSS if self.int8 else 0.0)

    @property
    def form(self) -> str:
        """The runtime and the precision, such as `onnxruntime int8`."""
        return f"{self.runtime} int8" if self.int8 else self.runtime

    def __str__(self) -> str:
        return f"{self.model} at {self.size} in {self.form}"


def chosen_runtimes(settings: PickConfig) -> list[str]:
    """Return the runtimes to consider: those of the settings, else the installed ones.

    Raises:
        BadInput: A runtime is unknown.
        MissingExtra: A package of a runtime is not installed.
    """
    names = settings.runtime or list(filter(importlib.util.find_spec, _DEFAULT_RUNTIMES))
    names = list(dict.fromkeys(names or ["eager"]))
    for name in names:
        runtimes.check_settings(name, threads=settings.threads)
    return names


def candidates(settings: PickConfig) -> list[Candidate]:
    """Return all candidates, the most accurate first.

    Raises:
        BadInput: No model fits the settings; the message says which one excluded the last.
        MissingExtra: A package of a runtime is not installed.
    """
    names = chosen_runtimes(settings)
    forms = [(name, False) for name in names]
    if settings.int8:
        forms += [(name, True) for name in names if FORMATS.get(name) in int8.MODULES]
        if len(forms) == len(names):
            raise BadInput(f"--int8: no int8 files for {', '.join(names)}; try onnxruntime")
    found = [
        Candidate(*entry, runtime, is_int8)
        for entry in _models(settings)
        for runtime, is_int8 in forms
    ]
    return sorted(found, key=lambda c: (-c.value, c.model, c.size, c.form))


_Entry = tuple[str, str, int, float, str, str, int, int]


def _models(settings: PickConfig) -> list[_Entry]:
    """Return the fields of each model at each size, before runtime and precision."""
    named = set(resolve_names(settings.models)) if settings.models else None
    found = [
        entry
        for name in registry.list_models(task="classification", pretrained=True, peers=True)
        if named is None or name in named or name.partition(".")[0] in named
        for entry in _sizes(name)
    ]
    if not found:
        raise BadInput(
            f"--models {' '.join(settings.models)}: none of them has a published ImageNet-1k "
            "accuracy, counts and weights that can be fetched; see `zoo list --pretrained --peers`"
        )
    if settings.size:
        sizes = sorted({entry[2] for entry in found})
        found = [entry for entry in found if entry[2] in settings.size]
        _refuse_none(found, "--size", settings.size, f"sizes with a published accuracy: {sizes}")
    if settings.licence:
        wanted = [glob.lower() for glob in settings.licence]
        known = sorted({entry[5] for entry in found})
        found = [e for e in found if any(fnmatch.fnmatch(e[5].lower(), glob) for glob in wanted)]
        _refuse_none(found, "--licence", settings.licence, f"licences of weights: {known}")
    if settings.top1 is not None:
        best = max(entry[3] for entry in found)
        found = [entry for entry in found if entry[3] >= settings.top1]
        _refuse_none(found, "--top1", settings.top1, f"the best candidate has {best:g} %")
    return found


def _refuse_none(found: list[_Entry], option: str, value: object, choices: str) -> None:
    if not found:
        shown = " ".join(map(str, value)) if isinstance(value, list) else f"{value}"
        raise BadInput(f"{option} {shown}: no candidate is left; {choices}")


def _sizes(name: str) -> Iterator[_Entry]:
    """Yield a model at each image size with a published accuracy."""
    spec = registry.get_spec(name)
    licence = next(entry for entry in spec.weights if "url" in entry).get("licence", NOT_STATED)
    if registry.is_peer(name):
        family = name.removeprefix(registry.TIMM).removeprefix("tf_").split("_")[0]
        for side, (macs, moved) in spec.facts["costs"].items():
            accuracy = published({"model": name, "input_size": [1, 3, side, side]})
            assert accuracy is not None
            yield name, family, side, accuracy.top1, accuracy.source, licence, macs, moved
        return
    accuracy, cost = published({"model": name}), figures.of(name)
    channels, *sides = spec.facts["input"]["size"]
    is_square = channels == 3 and len(sides) == 2 and len(set(sides)) == 1
    if accuracy and is_square and cost.macs and cost.moved_bytes:
        yield (
            *(name, spec.family, sides[0], accuracy.top1, accuracy.source, licence),
            *(cost.macs, cost.moved_bytes),
        )
