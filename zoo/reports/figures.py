"""Counted MACs and measured latencies that come with the package: `zoo/facts/figures.json`.

`python -m tools write` makes the file from `results/counts.json` and `results/models.jsonl`, so
that `zoo list` and `zoo info` have them in an installed package, without building a model.
"""

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from zoo import registry
from zoo.reports.pareto import published

FILE = "figures.json"

# Data sets other than ImageNet-1k, by a word in the source of a figure or in the name of a model.
_DATA_SETS = {
    "cifar-100": "CIFAR-100",
    "cifar100": "CIFAR-100",
    "cifar-10": "CIFAR-10",
    "cifar10": "CIFAR-10",
    "flowers": "Flowers",
    "galaxy10": "Galaxy10",
    "tinyimagenet": "Tiny IN",
    "places365": "Places365",
}
_CLASSES = {"CIFAR-100": 100, "CIFAR-10": 10}


@dataclass(frozen=True)
class Figures:
    """What is known about the cost of a model; empty for one without recorded figures.

    Attributes:
        macs: Multiply-accumulates for one image of the model's own size, as trained.
        moved_bytes: Bytes that the operators read and write for it; None if not counted.
        ms: Per runtime, the median latency of the fused model in ms and its 95 % interval.
    """

    macs: int | None
    moved_bytes: int | None
    ms: dict[str, tuple[float, float | None, float | None]]

    def latency(self, runtime: str | None = None) -> float | None:
        """Return the median in a runtime, or the lowest one; None if it is not measured."""
        medians = [ms[0] for name, ms in self.ms.items() if runtime in (None, name)]
        return min(medians, default=None)


@functools.cache
def _content() -> dict[str, Any]:
    file = resources.files("zoo.facts") / FILE
    return json.loads(file.read_text(encoding="utf-8"))


def of(name: str) -> Figures:
    """Return the figures of a model."""
    if registry.is_peer(name):
        facts = registry.get_spec(name).facts
        macs, moved_bytes = facts["costs"][facts["input"]["size"][1]]
        return Figures(macs, moved_bytes, {})
    entry = _content()["models"].get(name, {})
    times = {runtime: tuple(values) for runtime, values in entry.get("ms", {}).items()}
    return Figures(entry.get("macs"), entry.get("moved_bytes"), times)


def runtimes() -> list[str]:
    """List the runtimes with measured latencies."""
    return _content()["runtimes"]


def measured_on() -> str:
    """Describe the machine and the settings of the latencies."""
    return _content()["measured_on"]


def imagenet_top1(name: str) -> float | None:
    """Return the best published top-1 accuracy on ImageNet-1k in percent, if there is one."""
    accuracy = published({"model": name})
    return accuracy.top1 if accuracy else None


def other_top1(name: str) -> str:
    """Return the best published top-1 accuracy on another data set, such as `96.5 CIFAR-10`."""
    spec = registry.get_spec(name)
    found = [
        (entry["top1"], data_set)
        for entry in spec.facts.get("published", [])
        if "top1" in entry and (data_set := _data_set(f"{entry.get('source')} {name}", spec))
    ]
    if not found or spec.num_classes == 1000:
        return ""
    top1, data_set = max(found)
    return f"{top1:.1f} {data_set}"


def _data_set(text: str, spec: registry.ModelSpec) -> str:
    """Return the data set that a source names, if the model has as many classes."""
    named = re.search("|".join(_DATA_SETS), text.lower())
    data_set = _DATA_SETS[named[0]] if named else f"{spec.num_classes} classes"
    return data_set if _CLASSES.get(data_set, spec.num_classes) == spec.num_classes else ""


def size_of(name: str) -> list[int]:
    """Return the image size C H W that the latencies of a model were measured at."""
    return list(registry.get_spec(name).facts.get("input", {}).get("size", ()))
