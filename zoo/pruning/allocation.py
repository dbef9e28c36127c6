"""How many units are taken from which group, step by step, until a latency is met."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoo.importance import Scores
from zoo.narrowing import Place, prefix
from zoo.pruning.table import LatencyTable

ALLOCATIONS = ("latency", "global", "uniform", "nested", "zeros")
STEPS = 8  # widths of a group to choose from, besides its own, where the multiple allows


@dataclass
class State:
    """Which widths are left.

    Attributes:
        widths: Group -> number of units.
        dropped: Paths of the dropped blocks.
    """

    widths: dict[str, int]
    dropped: list[str] = field(default_factory=list)

    def ms(self, table: LatencyTable) -> float:
        """Return the latency of all groups that are left, from the table."""
        return sum(table.ms(name, width) for name, width in self.widths.items())

    def kept(self, scores: Scores) -> dict[str, Tensor]:
        """Return the units of each narrower group to keep: the most important, in their order."""
        return {
            name: scores[name].argsort(descending=True, stable=True)[:width].sort().values
            for name, width in self.widths.items()
            if width < len(scores[name])
        }


def choices(place: Place) -> list[int]:
    """Return the widths of a group to choose from, in descending order."""
    widths = place.group.widths()
    step = -(-(len(widths) - 1) // STEPS) or 1
    return [widths[0], *widths[1:][step - 1 :: step]]


def steps(
    allocation: str,
    found: Mapping[str, Place],
    scores: Scores,
    table: LatencyTable,
    blocks: Sequence[str] = (),
    shares: Sequence[float] = (),
) -> Iterator[State]:
    """Yield narrower and narrower states, without end only where nothing can be taken.

    Args:
        allocation: `"latency"`, `"global"`, `"uniform"` or `"nested"`.
        found: The groups of the model.
        scores: The importance of their units.
        table: Latency of every group at every width.
        blocks: Paths of the blocks that may be dropped, for `"latency"`.
        shares: Shares of the hidden channels that were trained, for `"nested"`.
    """
    if allocation == "latency":
        yield from _by_latency(found, scores, table, blocks)
    elif allocation == "nested":
        for share in sorted(shares, reverse=True):
            yield State({name: len(units) for name, units in prefix(found, share).items()})
    elif allocation == "uniform":
        for percent in range(5, 100, 5):
            widths = {
                name: _nearest(place, place.group.width * (1 - percent / 100))
                for name, place in found.items()
            }
            yield State(widths)
    else:
        ranked = torch.cat(list(scores.values())).sort().values
        for percent in range(5, 100, 5):
            threshold = ranked[int(len(ranked) * percent / 100)]
            widths = {
                name: _nearest(place, int((scores[name] >= threshold).sum()))
                for name, place in found.items()
            }
            yield State(widths)


def _nearest(place: Place, wanted: float) -> int:
    """Return the smallest width to choose from that is at least `wanted`."""
    return min(width for width in place.group.widths() if width >= wanted)


def _by_latency(
    found: Mapping[str, Place], scores: Scores, table: LatencyTable, blocks: Sequence[str]
) -> Iterator[State]:
    """Take the step that loses the least score per millisecond, again and again."""
    lost = {  # score lost by keeping only so many units
        name: torch.cat([torch.zeros(1), values.sort().values.double().cumsum(0)]).flip(0).tolist()
        for name, values in scores.items()
    }
    inside = {
        path: [name for name, place in found.items() if _is_inside(place.path, path)]
        for path in blocks
    }
    inside = {path: names for path, names in inside.items() if names}
    state = State({name: place.group.width for name, place in found.items()})
    while True:
        best: tuple[float, State] | None = None
        for name, width in state.widths.items():
            for smaller in choices(found[name]):
                saved = table.ms(name, width) - table.ms(name, smaller)
                if smaller < width and saved > 0:
                    price = (lost[name][smaller] - lost[name][width]) / saved
                    if best is None or price < best[0]:
                        best = price, State({**state.widths, name: smaller}, state.dropped)
        for path, names in inside.items():
            if path in state.dropped or not all(name in state.widths for name in names):
                continue
            saved = sum(table.ms(name, state.widths[name]) for name in names)
            if saved > 0:
                price = sum(lost[name][0] - lost[name][state.widths[name]] for name in names)
                if best is None or price / saved < best[0]:
                    widths = {n: w for n, w in state.widths.items() if n not in names}
                    best = price / saved, State(widths, [*state.dropped, path])
        if best is None:
            return
        state = best[1]
        yield state


def _is_inside(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")
