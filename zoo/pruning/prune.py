"""Prune a model to a measured latency: score, allocate, cut, recalibrate, and prove it."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.widths import unit_is_zero
from zoo.errors import BadInput
from zoo.importance import Scores, add_gradients, score
from zoo.narrowing import Place, cut, droppable, hidden_places, places, table_of
from zoo.profiling.results import Comparison
from zoo.pruning.allocation import State, steps
from zoo.pruning.table import LatencyTable, Timer, measure_table
from zoo.recalibration import recalibrate
from zoo.settings import PruneConfig

MEASUREMENTS = 8  # of the whole model, before the search gives up


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and how it was found.

    Attributes:
        model: The model, with batch norm statistics of its own.
        widths: The table of its widths, for `zoo.create_model`.
        comparison: Its latency (B) beside that of the model before (A).
        measured: Number of whole models that were measured.
    """

    model: nn.Module
    widths: dict[str, int]
    comparison: Comparison
    measured: int


def prune(
    model: nn.Module,
    input_size: Sequence[int],
    settings: PruneConfig,
    timer: Timer,
    batches: Callable[[], Iterable[tuple[Tensor, Any]]],
    loss: Callable[[Any, Any], Tensor],
    table: LatencyTable | None = None,
    shares: Sequence[float] = (),
) -> Pruned:
    """Return a narrower model that meets the latency, or that has no zero units any more.

    Args:
        model: The trained model, in evaluation mode; it is not changed.
        input_size: B C H W of the latency.
        settings: The group `prune`.
        timer: Measures latencies.
        batches: Returns training images B C H W and their targets.
        loss: Maps outputs and targets to a number; for the score `hesso`.
        table: Latency of every group at every width; None measures it.
        shares: Shares of the hidden channels that were trained (`train.elastic`).

    Raises:
        BadInput: The model has nothing to prune, the latency cannot be reached or is met already,
            or the result is not faster.
    """
    found = places(model)
    if not found:
        raise BadInput(
            f"{type(model).__name__} has no hidden width or head that can be cut; prune another"
            " model"
        )
    if settings.allocation == "zeros":
        return _without_zeros(model, found, input_size, settings, timer)
    if settings.allocation == "nested":
        found = hidden_places(model)
        scores = {name: -torch.arange(float(p.group.width)) for name, p in found.items()}
    else:
        if settings.score == "hesso":
            add_gradients(model, batches(), loss)
        scores = score(settings.score, found)
    model.zero_grad()
    search = _Search(model, found, scores, input_size, settings, timer, shares)
    state, comparison = search.run(table)
    narrower = _recalibrated(search.cut(state), (images for images, _ in batches()))
    _refuse_slower(comparison)
    return Pruned(narrower, table_of(model, narrower, state.dropped), comparison, search.measured)


class _Search:
    """Walks through narrower and narrower states until the measured latency is met."""

    def __init__(
        self,
        model: nn.Module,
        found: dict[str, Place],
        scores: Scores,
        input_size: Sequence[int],
        settings: PruneConfig,
        timer: Timer,
        shares: Sequence[float],
    ) -> None:
        self.shares = shares
        self.model, self.found, self.scores = model, found, scores
        self.input_size, self.settings, self.timer = input_size, settings, timer
        self.measured = 0

    def run(self, table: LatencyTable | None) -> tuple[State, Comparison]:
        """Return the first state whose measured latency is at most the target."""
        target = self.settings.latency_ms
        assert target is not None
        before = self.timer.ms(self.model, self.input_size)
        if before <= target:
            raise BadInput(
                f"prune.latency_ms={target:g}: the model takes {before:.3g} ms in"
                f" {self.settings.runtime} already; give a lower latency"
            )
        if table is None:
            table = measure_table(self.model, self.found, self.input_size, self.timer)
        full = State({name: place.group.width for name, place in self.found.items()}).ms(table)
        states = list(self._states(table))
        savings = [full - state.ms(table) for state in states]
        best: tuple[State, Comparison] | None = None
        factor, lowest = 1.0, before
        # The states before `first` take longer than the target, and those from `last` on do not.
        first, last = 0, len(states)
        while first < last and self.measured < MEASUREMENTS:
            wanted = (before - target) / max(factor, 1e-9)
            guess = next((i for i, saved in enumerate(savings) if saved >= wanted), last)
            index = min(max(guess, first), last - 1)
            comparison = self._measure(states[index])
            reached = max(before, comparison.a.p50) * comparison.ratio  # of two measurements
            # The blocks of a whole model save another share of what they save by themselves.
            factor = (before - reached) / max(savings[index], 1e-9)
            if reached <= target:
                best, last = (states[index], comparison), index
            else:
                first, lowest = index + 1, min(lowest, reached)
        if best is not None:
            return best
        raise BadInput(
            f"prune.latency_ms={target:g} cannot be reached: the narrowest form that was measured"
            f" takes {lowest:.3g} ms in {self.settings.runtime}, and the model itself"
            f" {before:.3g} ms; give prune.latency_ms={1.05 * lowest:.3g} or more, or a smaller"
            " model"
        )

    def _states(self, table: LatencyTable) -> Iterable[State]:
        blocks = droppable(self.model) if self.settings.drop_blocks else []
        chosen = self.settings.allocation
        return steps(chosen, self.found, self.scores, table, blocks, self.shares)

    def cut(self, state: State) -> nn.Module:
        """Return the model of a state."""
        return cut(self.model, state.kept(self.scores), state.dropped)

    def _measure(self, state: State) -> Comparison:
        self.measured += 1
        return self.timer.compare(self.model, self.cut(state), self.input_size)


def _without_zeros(
    model: nn.Module,
    found: dict[str, Place],
    input_size: Sequence[int],
    settings: PruneConfig,
    timer: Timer,
) -> Pruned:
    """Cut the units that `train.shrink` has made zero; the outputs stay the same."""
    kept = {}
    for name, place in found.items():
        zero = unit_is_zero(place.block, place.group)
        if bool(zero.any()):
            left = (~zero).nonzero().flatten()
            # The last unit of a group stays: a layer has at least one channel.
            kept[name] = left if len(left) else torch.zeros(1, dtype=torch.long)
    if not kept:
        raise BadInput(
            "prune.allocation=zeros: no unit of the model is zero; train with train.shrink first,"
            " or choose another prune.allocation"
        )
    narrower = cut(model, kept)
    comparison = timer.compare(model, narrower, input_size)
    target = settings.latency_ms
    if target is not None and comparison.b.p50 > target:
        raise BadInput(
            f"prune.latency_ms={target:g}: without its zero units the model takes"
            f" {comparison.b.p50:.3g} ms; train with a larger train.shrink, or leave latency_ms out"
        )
    _refuse_slower(comparison)
    return Pruned(narrower, table_of(model, narrower), comparison, 1)


def _refuse_slower(comparison: Comparison) -> None:
    """Raise `BadInput` unless B is faster than A beyond doubt."""
    high = comparison.ratio if comparison.high is None else comparison.high
    if high >= 1:
        raise BadInput(
            f"the pruned model is not faster: {comparison.ratio:.3f} times the latency of the model"
            f" before, at most {high:.3f}, over {comparison.n} pairs of calls; nothing was written."
            " Give a lower prune.latency_ms, or measure on a quiet machine"
        )


def _recalibrated(model: nn.Module, images: Iterable[Tensor]) -> nn.Module:
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if any(norm.running_mean is not None for norm in norms):
        return recalibrate(model, images)
    return copy.deepcopy(model)
