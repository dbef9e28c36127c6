"""When a run ends before its last epoch: `train.patience` and `train.max_time`."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from zoo.settings import TrainConfig
from zoo.training.checks import parse_duration


class TimeLimit:
    """The time that a run may take, over all of its processes that were interrupted and resumed.

    Args:
        train: The group `train` of the settings.
        used: Seconds that the run took before it was resumed.
        clock: Function that returns the current time in seconds; None for this machine's.
    """

    def __init__(
        self, train: TrainConfig, used: float = 0.0, clock: Callable[[], float] | None = None
    ):
        self._clock = clock or time.monotonic
        self._limit = None
        if train.max_time is not None:
            self._limit = parse_duration("train.max_time", train.max_time)
        self._begin = self._clock() - used

    @property
    def used(self) -> float:
        """Seconds that the run took so far; 0 without a limit, so that equal runs stay equal."""
        return 0.0 if self._limit is None else self._clock() - self._begin

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._limit is not None and self.used >= self._limit


def is_finished(progress: Mapping[str, Any], train: TrainConfig) -> bool:
    """Return whether a run has nothing left to train.

    Args:
        progress: The entry `progress` of its checkpoint.
        train: The group `train` of the settings.
    """
    is_over = TimeLimit(train, progress.get("seconds", 0.0)).is_over
    reason = reason_to_end(train, progress["epoch"], progress["best_epoch"], is_over=is_over)
    return progress["epoch"] >= train.epochs or bool(reason)


def reason_to_end(train: TrainConfig, epoch: int, best_epoch: int, *, is_over: bool) -> str:
    """Return why a run ends before its last epoch; an empty string if it goes on.

    Args:
        train: The group `train` of the settings.
        epoch: Number of completed epochs.
        best_epoch: The best of them, counted from 1; 0 if none has a score.
        is_over: Whether the time is up.
    """
    if train.patience is not None and epoch - best_epoch >= train.patience:
        return f"no better epoch in train.patience={train.patience}"
    return f"train.max_time={train.max_time} is over" if is_over else ""
