"""Accuracy beside latency: which published top-1 belongs to a record, and who is on the front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoo import registry
from zoo.reports.records import Record

# Arguments of `create_model` that leave it the model whose accuracy was published.
_HARMLESS = ("pretrained", "drop_rate", "drop_path_rate", "checkpoint_path")


@dataclass(frozen=True)
class Accuracy:
    """What was published of a model.

    Attributes:
        top1: On the validation images of ImageNet-1k, in percent; the best there is.
        source: Where it stands.
        size: The sides of the images in pixels.
    """

    top1: float
    source: str
    size: tuple[int, ...]


def published(record: Record) -> Accuracy | None:
    """Return the accuracy of the model of a record; None where nothing comparable is published.

    Comparable are classifiers of the thousand classes of ImageNet, built as published.
    """
    if not registry.is_model(record["model"]) or set(record.get("args") or {}) - set(_HARMLESS):
        return None
    spec = registry.get_spec(record["model"])
    entries: list[dict[str, Any]] = [e for e in spec.facts.get("published", []) if "top1" in e]
    if spec.task != "classification" or spec.num_classes != 1000 or not entries:
        return None
    best = max(entries, key=lambda entry: entry["top1"])
    size = tuple(spec.facts.get("input", {}).get("size", ()))[1:]
    return Accuracy(best["top1"], best.get("source", ""), size)


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say of each point (latency, accuracy) whether no other is as fast and more accurate.

    Of points that agree in both, all are on the front or none.
    """
    best, chosen = float("-inf"), set()
    for latency, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if accuracy > best:
            best = accuracy
            chosen.add((latency, accuracy))
    return [point in chosen for point in points]
