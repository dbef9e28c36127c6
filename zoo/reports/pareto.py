"""Published accuracy of the models in records, and the Pareto front of accuracy and latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoo import registry
from zoo.reports.records import Record

# Arguments of `create_model` that do not affect the published accuracy.
_NEUTRAL_ARGUMENTS = ("pretrained", "drop_rate", "drop_path_rate", "checkpoint_path")


@dataclass(frozen=True)
class Accuracy:
    """The published accuracy of a model.

    Attributes:
        top1: Best published top-1 accuracy on the validation set of ImageNet-1k, in percent.
        source: Where it was published.
        size: Height and width of the images in pixels.
    """

    top1: float
    source: str
    size: tuple[int, ...]


def published(record: Record) -> Accuracy | None:
    """Return the published accuracy of the model of a record, or None without a comparable one.

    Only classifiers for the 1000 classes of ImageNet with their default architecture are
    comparable.
    """
    if registry.is_peer(record["model"]):
        return _of_peer(record)
    name = record["model"].removeprefix(registry.TIMM)
    if not registry.is_model(name) or set(record.get("args") or {}) - set(_NEUTRAL_ARGUMENTS):
        return None
    spec = registry.get_spec(name)
    entries: list[dict[str, Any]] = [e for e in spec.facts.get("published", []) if "top1" in e]
    if name != record["model"]:  # a model of timm that is also ours: only figures of its weights
        entries = [e for e in entries if e.get("source", "").startswith("timm ")]
    if spec.task != "classification" or spec.num_classes != 1000 or not entries:
        return None
    best = max(entries, key=lambda entry: entry["top1"])
    size = tuple(spec.facts.get("input", {}).get("size", ()))[1:]
    return Accuracy(best["top1"], best.get("source", ""), size)


def _of_peer(record: Record) -> Accuracy | None:
    """Return the figure of a timm model at the size of the record, else its best one."""
    if set(record.get("args") or {}) - set(_NEUTRAL_ARGUMENTS):
        return None
    facts = registry.get_spec(record["model"]).facts
    rows = dict(zip(facts["costs"], facts["published"], strict=True))
    measured = (record.get("input_size") or facts["input"]["size"])[-1]
    side = measured if measured in rows else max(rows, key=lambda side: rows[side]["top1"])
    return Accuracy(rows[side]["top1"], rows[side]["source"], (side, side))


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each point (latency, accuracy) whether it is on the Pareto front.

    A point is on the front if no other point is better in one value and at least equal in the
    other. Equal points are all on the front or all off it.
    """
    best, on_front = float("-inf"), set()
    for latency, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if accuracy > best:
            best = accuracy
            on_front.add((latency, accuracy))
    return [point in on_front for point in points]
