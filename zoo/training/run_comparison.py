"""Compare training runs: the mean difference of runs with equal seeds, and its 95 % interval.

Runs of one seed share the order of their images and the augmentation, so their difference varies
less than either. The interval is Student's t for paired samples: mean ± t * s / sqrt(n), where s is
the sample standard deviation of the n differences. The metric is that of the last epoch: the best
epoch is chosen on the validation images, which favours runs whose metric varies more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import BadInput, unknown_value
from zoo.training.run_groups import Run, check_comparable, default_metric, described, read_group

LEVEL = 0.95
FEWEST = 2  # seeds; one difference has no interval
PLAIN = ("loss", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim")
PLAIN += ("bilateral_psnr", "bilateral_ssim")  # the others are shares


@dataclass(frozen=True)
class Difference:
    """The mean difference B - A of paired runs.

    Attributes:
        mean: The mean of the differences.
        half: Half the width of its 95 % interval.
        seeds: Number of pairs.
        lower_is_better: Whether a lower value is better.
    """

    mean: float
    half: float
    seeds: int
    lower_is_better: bool = False

    @property
    def better(self) -> str | None:
        """`"A"` or `"B"`; None if the interval contains 0, so that chance may be the reason."""
        if abs(self.mean) <= self.half:
            return None
        return "B" if (self.mean > 0) != self.lower_is_better else "A"


@dataclass(frozen=True)
class RunComparison:
    """A metric of two groups of runs, in points if it is a share.

    Attributes:
        metric: Its name.
        seeds: The seeds that both groups have.
        a: The value of each seed in A.
        b: The value of each seed in B.
        difference: The mean difference.
        notes: What is compared, which seeds are left out, and warnings, one line each.
    """

    metric: str
    seeds: list[int]
    a: list[float]
    b: list[float]
    difference: Difference
    notes: list[str]

    def number(self, value: float, *, sign: bool = False) -> str:
        """Return a value or difference as text."""
        return f"{value:{'+' if sign else ''}.{4 if self.metric in PLAIN else 2}f}"

    def sentence(self) -> str:
        """Return the verdict in words."""
        found = self.difference
        unit = "" if self.metric in PLAIN else " points"
        half = f"{self.number(found.half)}{unit} (95 % interval of {found.seeds} paired seeds)"
        if found.better is None:
            mean = self.number(found.mean, sign=True)
            return f"{self.metric}: no difference shown: B - A is {mean} ± {half}"
        mean = self.number(abs(found.mean))
        return f"{self.metric}: {found.better} is better by {mean} ± {half}"


def difference(
    a: Sequence[float], b: Sequence[float], *, lower_is_better: bool = False
) -> Difference:
    """Return the mean difference of paired values.

    Args:
        a: A value for each seed.
        b: The values of the same seeds in the same order.
        lower_is_better: Whether a lower value is better.

    Raises:
        BadInput: There are fewer than two pairs.
    """
    n = len(a)
    if n < FEWEST:
        raise BadInput(f"an interval needs at least {FEWEST} paired seeds, not {n}; train more")
    steps = [y - x for x, y in zip(a, b, strict=True)]
    return Difference(math.fsum(steps) / n, half_width(steps) or 0.0, n, lower_is_better)


def half_width(values: Sequence[float], *, folds: int | None = None) -> float | None:
    """Return half the width of the 95 % interval of a mean (Student's t).

    Args:
        values: The values: one for each seed, or one for each fold.
        folds: Number of folds if the values are those of folds. The training images of k folds
            overlap, so the variance of their mean is larger: s² (1/n + 1/(k - 1)) instead of s²/n
            (Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003).

    Returns:
        Half the width; None for fewer than two values.
    """
    n = len(values)
    if n < FEWEST:
        return None
    from scipy.stats import t  # takes about a second to import

    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    share = 1 / n if folds is None else 1 / n + 1 / (folds - 1)
    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance * share)


def compare_runs(
    a: Path, b: Path, *, changed: Sequence[str] = (), metric: str | None = None
) -> RunComparison:
    """Compare two folders of runs.

    Args:
        a: A folder of runs that differ only in their seed.
        b: Another one.
        changed: Names or globs of the settings that are compared, such as `"train.mixup"`.
        metric: A metric of `metrics.csv` without `val/`; None for the score of the task.

    Raises:
        BadInput: A run cannot be used, other settings or the images differ, the metric is unknown,
            or fewer than two seeds are in both folders.
    """
    first, second = read_group(a), read_group(b)
    keys = check_comparable(first[0], second[0], changed)
    left, right = ({run.seed: run for run in runs} for runs in (first, second))
    seeds = [seed for seed in left if seed in right]
    if len(seeds) < FEWEST:
        raise BadInput(
            f"{a} has the seeds {_list(left)}, {b} has {_list(right)}: an interval needs at least"
            f" {FEWEST} in both; train with the same values of train.seed"
        )
    name = _metric(metric, [*first, *second])
    values = [[_value(runs[seed], name) for seed in seeds] for runs in (left, right)]
    factor = 1 if name in PLAIN else 100
    ours, theirs = ([factor * value for value in side] for side in values)
    found = difference(ours, theirs, lower_is_better=name == "loss")
    notes = [f"compared: {described(keys, first[0], second[0], 'A', 'B')}"] if keys else []
    notes += _unpaired(left, right) + _unknown_images([*first, *second])
    return RunComparison(name, seeds, ours, theirs, found, notes)


def _metric(given: str | None, runs: Sequence[Run]) -> str:
    """Return the metric to compare, which all runs have."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    name = default_metric(shared) if given is None else given.removeprefix("val/")
    if name is None:
        raise BadInput(f"{runs[0].folder} has no score of a task; give --metric")
    if name not in shared:
        raise BadInput(unknown_value("metric", name, shared))
    return name


def _value(run: Run, metric: str) -> float:
    value = run.metrics[metric]
    if not math.isfinite(value):
        raise BadInput(f"{run.folder} ended with {metric} {value}; repeat it with a lower train.lr")
    return value


def _unpaired(left: dict[int, Run], right: dict[int, Run]) -> list[str]:
    sides = (("A", left, right), ("B", right, left))
    only = {name: [seed for seed in one if seed not in other] for name, one, other in sides}
    return [f"left out, only in {name}: seeds {_list(it)}" for name, it in only.items() if it]


def _unknown_images(runs: Sequence[Run]) -> list[str]:
    unknown = sum(run.splits is None for run in runs)
    if not unknown:
        return []
    return [f"warning: {unknown} of {len(runs)} runs do not say which images they used"]


def _list(seeds: Sequence[int] | dict[int, Run]) -> str:
    return ", ".join(map(str, seeds))
