"""The search: measure the candidates that promise most, and drop slow ones after a few calls."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from zoo.errors import ZooError, first_line
from zoo.picking.candidates import Candidate
from zoo.picking.predict import Predictor
from zoo.profiling.stats import Summary, summarize
from zoo.reports.claims import half_width

ROUNDS = (8, 16, 32, 64, 128)  # calls of a candidate in total after each round
NARROW = 0.03  # an interval within this share of its median needs no further calls
GAIN = 0.02  # points of top-1; the search ends when no candidate promises more

Calls = Callable[[int], np.ndarray]  # calls a model this often and returns the ms of each call


class Timer(Protocol):
    """Times candidates."""

    def open(self, candidate: Candidate) -> AbstractContextManager[Calls]:
        """Build and warm up a candidate; the context gives the function that times its calls.

        Raises:
            Exception: The candidate cannot be built, exported or run.
        """
        ...


@dataclass(frozen=True)
class Measured:
    """A measured candidate.

    Attributes:
        candidate: What was measured.
        times: Its latencies in ms.
        predicted_ms: The prediction before it was measured.
        dropped: Whether its calls ended early, because the lower end of its interval exceeded the
            budget.
        repeated: Whether it had a second chance.
    """

    candidate: Candidate
    times: Summary
    predicted_ms: float
    dropped: bool
    repeated: bool = False

    def fits(self, budget_ms: float) -> bool:
        """Return whether the median is within a budget."""
        return not self.dropped and self.times.p50 <= budget_ms


class Search:
    """A search for the most accurate candidates within a budget.

    The next candidate is the one with the highest expected gain: the probability that it meets the
    budget, times the points of top-1 by which it exceeds the best so far (the worst finalist).

    Args:
        predictor: Predicts the candidates' latencies; it learns from each measurement.
        timer: Times them.
        budget_ms: Largest median latency in ms.
        finalists: How many candidates within the budget to find.
    """

    def __init__(
        self, predictor: Predictor, timer: Timer, budget_ms: float, finalists: int = 1
    ) -> None:
        self.predictor, self.timer = predictor, timer
        self.budget_ms, self.finalists = budget_ms, finalists
        self.measured: list[Measured] = []
        self.failed: dict[Candidate, str] = {}
        self._floor = min(candidate.value for candidate in predictor.candidates) - 1.0

    def recall(self, earlier: Iterable[Measured]) -> None:
        """Take measurements of an earlier run into account.

        One that was dropped for a smaller budget is left out: it has too few calls.
        """
        for found in earlier:
            low = found.times.low if found.times.low is not None else found.times.p50
            if not found.dropped or low > self.budget_ms:
                self._add(found)

    def promising(self) -> list[Candidate]:
        """Return the candidates that are worth measuring, the most promising first."""
        done = {found.candidate for found in self.measured} | set(self.failed)
        best = self._best()
        gains = {
            candidate: self.predictor.chance(candidate, self.budget_ms) * (candidate.value - best)
            for candidate in self.predictor.candidates
            if candidate not in done and candidate.value > best and self._is_new(candidate)
        }
        worth = [candidate for candidate, gain in gains.items() if gain >= GAIN]
        return sorted(worth, key=lambda candidate: -gains[candidate])

    def second_chances(self) -> list[Candidate]:
        """Return dropped candidates to measure once more, the most accurate first.

        One with a single call within the budget may have been slow because the machine was busy.
        """
        best = self._best()
        doubtful = [
            found.candidate
            for found in self.measured
            if found.dropped
            and not found.repeated
            and found.times.min <= self.budget_ms
            and found.candidate.value > best
        ]
        return sorted(doubtful, key=lambda candidate: -candidate.value)

    def repeat(self, candidate: Candidate) -> Measured:
        """Measure a dropped candidate once more; the faster of both measurements counts."""
        (before,) = (found for found in self.measured if found.candidate == candidate)
        self.measured.remove(before)
        again = self.step(candidate)
        self.failed.pop(candidate, None)  # it ran the first time
        if again is not None:
            self.measured.remove(again)
        faster = again if again and again.times.p50 < before.times.p50 else before
        found = replace(faster, predicted_ms=before.predicted_ms, repeated=True)
        self._add(found)
        return found

    def step(self, candidate: Candidate) -> Measured | None:
        """Measure a candidate; None if it failed, which `failed` explains."""
        predicted = self.predictor.ms(candidate)
        try:
            with self.timer.open(candidate) as calls:
                times, dropped = measure(calls, self.budget_ms)
        except Exception as error:  # a failing model must not end the search
            known = isinstance(error, ZooError)
            self.failed[candidate] = str(error) if known else first_line(error)
            return None
        found = Measured(candidate, times, predicted, dropped)
        self._add(found)
        return found

    def fitting(self) -> list[Measured]:
        """Return the candidates within the budget, the most accurate first, then the fastest."""
        fits = [found for found in self.measured if found.fits(self.budget_ms)]
        return sorted(fits, key=lambda found: (-found.candidate.value, found.times.p50))

    def final(self) -> list[Measured]:
        """Return the finalists: the best candidates of different models."""
        best: dict[str, Measured] = {}
        for found in self.fitting():
            best.setdefault(found.candidate.model, found)
        return list(best.values())[: self.finalists]

    def _best(self) -> float:
        """Return the accuracy that a further candidate must exceed."""
        final = self.final()
        return final[-1].candidate.value if len(final) == self.finalists else self._floor

    def _is_new(self, candidate: Candidate) -> bool:
        """Return whether a model is no finalist yet, or would be a more accurate one."""
        return all(
            found.candidate.model != candidate.model or found.candidate.value < candidate.value
            for found in self.final()
        )

    def _add(self, found: Measured) -> None:
        self.measured.append(found)
        self.predictor.learn(found.candidate, found.times.p50)


def measure(calls: Calls, budget_ms: float) -> tuple[Summary, bool]:
    """Time a candidate in rounds, each of which doubles its calls.

    Args:
        calls: Calls the candidate so often, and returns the ms of each call.
        budget_ms: A candidate is dropped once the lower end of its interval exceeds this.

    Returns:
        The latencies in ms, and whether it was dropped.
    """
    times = np.empty(0)
    for total in ROUNDS:
        times = np.concatenate([times, calls(total - len(times))])
        found = summarize(times)
        low, high = found.low or 0.0, found.high or math.inf  # 8 calls have an interval
        if low > budget_ms:
            return found, True
        width = half_width(found.p50, low, high)
        if width is not None and width <= NARROW and not low <= budget_ms <= high:
            break
    return found, False


def seconds_left(search: Search, spent: list[float]) -> float | None:
    """Estimate how long the rest takes at most; None before the first measurement."""
    if not spent:
        return None
    return math.fsum(spent) / len(spent) * len(search.promising())
