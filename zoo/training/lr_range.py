"""`train.find_lr`: a range test, which raises the learning rate until the loss explodes.

Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3. The
suggested rate is the one at which the smoothed loss falls fastest over the logarithm of the rate.
"""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.training import pictures, report_files

LOWEST, HIGHEST = 1e-6, 1.0  # rates of the test, as train.lr
UPDATES = 100
EXPLODED = 4.0  # the test ends where the smoothed loss is so many times the lowest
SMOOTHING = 0.9  # share of the running mean that is kept
FEWEST = 10  # updates for a suggestion


class Enough(Exception):
    """The test is complete."""


class RangeSchedule:
    """Raises the learning rate exponentially, as a schedule of timm does.

    Args:
        optimizer: Its groups may have an `lr_scale` (layer decay).
        factor: The learning rate of the optimizer over `train.lr`.
    """

    def __init__(self, optimizer: Any, factor: float) -> None:
        self.optimizer, self.factor = optimizer, factor
        self.step_update(0)

    def step_update(self, update: int) -> None:
        """Set the learning rate of the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.factor * rate(update) * group.get("lr_scale", 1.0)


def rate(update: int) -> float:
    """Return the learning rate of an update, counted from 0."""
    return LOWEST * (HIGHEST / LOWEST) ** (update / (UPDATES - 1))


class RangeLog:
    """Collects the loss of each update; in place of the log of a run."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []

    def log_update(self, update: int, values: dict[str, float]) -> None:
        """Note a loss, which the update before made.

        Raises:
            Enough: The loss exploded, or this was the last update.
        """
        self.rates.append(rate(update - 1))
        self.losses.append(values["train/loss"])
        smooth = smoothed(self.losses)
        if update >= UPDATES or smooth[-1] > EXPLODED * min(smooth):
            raise Enough

    def log_epoch(self, epoch: int, update: int, values: dict[str, float]) -> None:
        """Do nothing: the test has no epochs."""


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the running mean of losses, corrected for its start."""
    mean, found = 0.0, []
    for number, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**number))
    return found


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the learning rate at which the loss falls fastest; None if it never falls.

    Only rates below that of the lowest loss count, and the first tenth does not: the mean starts
    there.
    """
    smooth = np.array(smoothed(losses))
    last = int(smooth.argmin())
    first = len(smooth) // 10
    if last - first < FEWEST:
        return None
    slopes = np.gradient(smooth[first : last + 1], np.log(rates[first : last + 1]))
    steepest = int(slopes.argmin())
    return None if slopes[steepest] >= 0 else float(rates[first + steepest])


def write(out: str, name: str, log: RangeLog, chosen: float | None) -> Path:
    """Write `lr_range.csv` and the picture `lr_range.png` to a new folder, and return it."""
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(out).expanduser() / f"{now}_{name.replace('/', '-')}_lr_range"
    folder.mkdir(parents=True)
    smooth = smoothed(log.losses)
    rows = [
        {"lr": lr, "loss": loss, "smoothed": mean}
        for lr, loss, mean in zip(log.rates, log.losses, smooth, strict=True)
    ]
    report_files.write_table(folder / "lr_range.csv", rows)
    pictures.draw_lr_range(folder / "lr_range.png", log.rates, log.losses, smooth, chosen, name)
    return folder


def rounded(lr: float) -> float:
    """Return a rate with two digits."""
    digits = 1 - math.floor(math.log10(lr))
    return round(lr, digits)
