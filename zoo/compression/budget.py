"""Find an int8 artefact that loses at most so many points of accuracy, or say: stay in float.

Recipes are tried in this order, until one is within the budget:

1. the given recipe, without further layers in float;
2. the other ways to find ranges, then the other repairs, with the best ranges;
3. with the best of these, the 1, 2, 4, ... most sensitive layers in float, up to half of them, and
   then the fewest that suffice, by bisection.

Each is tried on images for searching, which are not the validation images. A recipe that is within
the budget there is evaluated on the validation images, and decided on there; if it fails, the
search goes on. The drop has a 95 % interval from paired predictions. A drop within the budget may
still have an interval that reaches beyond it: the verdict then says how far.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.binary import class_map
from zoo.compression.calibration import Batch
from zoo.compression.int8_writer import Writer
from zoo.compression.paired import PairedDrop, paired_drop
from zoo.compression.ranges import METHODS
from zoo.compression.recipe import REPAIRS, Recipe
from zoo.errors import BadInput, NotExportable
from zoo.reports.claims import verdict as latency_verdict
from zoo.training.artefact_model import ArtefactModel

SEARCHED_ON = 512  # images


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried.

    Attributes:
        recipe: The recipe.
        drop: The drop on the images for searching; None if no artefact could be written.
        failed: Why not.
        validation: The drop on the validation images, if it was evaluated there.
    """

    recipe: Recipe
    drop: PairedDrop | None
    failed: str | None = None
    validation: PairedDrop | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        drops = {"searched": self.drop, "validated": self.validation}
        return {
            **self.recipe.to_dict(),
            **{key: drop.to_dict() if drop else None for key, drop in drops.items()},
            "failed": self.failed,
        }


def check(
    max_drop: float, task: str, recipe: Recipe, data: Any, search_on: Sequence[Batch]
) -> None:
    """Raise `BadInput` for arguments with which nothing can be searched."""
    number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool)
    if not number or not 0 <= max_drop < 100:
        raise BadInput(f"max_drop={max_drop} must be from 0 to 100, in percentage points")
    if task != "classification":
        raise BadInput(
            f"max_drop={max_drop} is only supported for classification, not for {task}; leave it"
            " out, and see the score in the report"
        )
    if recipe.keep_float:
        raise BadInput("max_drop chooses the layers in float itself; leave out keep_float")
    if data is None or not len(search_on):
        raise BadInput("max_drop needs data and search_on: images to decide on")


def find(
    first: Recipe,
    ranked: Callable[[], Sequence[str]],
    max_drop: float,
    measure: Callable[[Recipe], Trial],
    validate: Callable[[Trial], Trial],
) -> tuple[Trial | None, list[Trial]]:
    """Search for the recipe with the fewest layers in float that is within a budget.

    Args:
        first: The recipe to start from.
        ranked: Returns the layers, the most sensitive one first; called only if needed.
        max_drop: Largest drop in percentage points.
        measure: Tries a recipe on the images for searching.
        validate: Adds the drop on the validation images to a trial.

    Returns:
        The trial that was chosen, or None; and all trials in their order.
    """
    trials: list[Trial] = []

    def passes(recipe: Recipe) -> bool:
        trial = measure(recipe)
        if trial.drop is not None and trial.drop.points <= max_drop:
            trial = validate(trial)
        trials.append(trial)
        return trial.validation is not None and trial.validation.points <= max_drop

    def best() -> Recipe:
        return min(trials, key=_loss).recipe

    for recipe in _without_float(first, best):
        if passes(recipe):
            return trials[-1], trials
    layers, recipe = list(ranked()), best()
    count, fails, chosen = 1, 0, None
    while count <= len(layers) // 2:
        if passes(replace(recipe, keep_float=tuple(layers[:count]))):
            chosen = trials[-1]
            break
        fails, count = count, 2 * count
    while chosen is not None and count - fails > 1:
        middle = (fails + count) // 2
        if passes(replace(recipe, keep_float=tuple(layers[:middle]))):
            chosen, count = trials[-1], middle
        else:
            fails = middle
    return chosen, trials


def _loss(trial: Trial) -> float:
    found = trial.validation or trial.drop
    return float("inf") if found is None else found.points


def _without_float(first: Recipe, best: Callable[[], Recipe]) -> Iterator[Recipe]:
    """Yield the recipes with every layer in int8; `best` returns the best of those tried."""
    yield first
    for ranges in METHODS:
        if ranges != first.ranges:
            yield replace(first, ranges=ranges)
    for name in reversed(REPAIRS):  # the cheapest first
        recipe = best().with_repair(name)
        if recipe != best():
            yield recipe


def search(
    writer: Writer,
    recipe: Recipe,
    folder: Path,
    data: Any,
    search_on: Sequence[Batch],
    max_drop: float,
    ranked: Callable[[], Sequence[str]],
) -> dict[str, Any]:
    """Search, and leave the artefact to publish in `folder`: in int8 if that pays, else in float.

    Args:
        writer: Writes the artefacts.
        recipe: The recipe to start from.
        folder: Where to leave the artefact.
        data: A datamodule, after `setup`.
        search_on: Images for searching, and their classes.
        max_drop: Largest drop in percentage points.
        ranked: Returns the layers, the most sensitive one first.

    Returns:
        The manifest, with `quantization`.
    """
    plain = writer.describe(writer.plain, "float32")
    expected = _right(writer, writer.plain, plain, data, search_on)
    validated: list[np.ndarray] = []
    trial_folder = folder / "trial"

    def measure(candidate: Recipe) -> Trial:
        shutil.rmtree(trial_folder, ignore_errors=True)
        trial_folder.mkdir()
        try:
            writer.convert(candidate, trial_folder)
        except NotExportable as error:
            found = Trial(candidate, None, str(error))
        else:
            right = _right(writer, trial_folder, plain, data, search_on)
            found = Trial(candidate, paired_drop(expected, right))
        print(f"int8 with {candidate}: {found.drop.change if found.drop else found.failed}")
        return found

    def validate(trial: Trial) -> Trial:
        if not validated:
            validated.append(_right(writer, writer.plain, plain, data, data.val_dataloader()))
        right = _right(writer, trial_folder, plain, data, data.val_dataloader())
        found = replace(trial, validation=paired_drop(validated[0], right))
        assert found.validation is not None
        print(f"  on the validation images: {found.validation.change}")
        return found

    chosen, trials = find(recipe, ranked, max_drop, measure, validate)
    shutil.rmtree(trial_folder, ignore_errors=True)
    content = _content(writer, chosen or _nearest(trials), folder, data)
    if content is None:
        return _stay_in_float(writer, folder, plain, {}, "stay in float: no int8 file works",
                              trials, max_drop)  # fmt: skip
    about = content["quantization"]
    drop, time = PairedDrop(**about["drop"]), about["latency"]
    speed = f"{1 / time['ratio']:.2f}x"
    is_faster = latency_verdict(time["low"], time["high"]) == "faster"
    if chosen is None or drop.points > max_drop:
        text = f"stay in float: int8 changes the accuracy by {drop.change}, {speed}"
    elif not is_faster:
        text = f"stay in float: {speed}"
    else:
        about["budget"] = _entry(f"int8: {drop.change}, {speed}", trials, max_drop, drop)
        return content
    return _stay_in_float(writer, folder, plain, about, text, trials, max_drop)


def _nearest(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the smallest drop, to say how much int8 loses."""
    working = [trial for trial in trials if trial.drop is not None]
    return min(working, key=_loss) if working else None


def _content(writer: Writer, trial: Trial | None, folder: Path, data: Any) -> dict[str, Any] | None:
    return None if trial is None else writer.write(trial.recipe, folder, data)


def _stay_in_float(
    writer: Writer,
    folder: Path,
    content: dict[str, Any],
    about: dict[str, Any],
    text: str,
    trials: Sequence[Trial],
    max_drop: float,
) -> dict[str, Any]:
    """Replace the int8 artefact in `folder` by the float one, and return its manifest."""
    for file in writer.plain.iterdir():
        file.replace(folder / file.name)
    drop = PairedDrop(**about["drop"]) if "drop" in about else None
    agreement = writer.comparison.agreement
    assert agreement is not None
    content["comparison"] = {
        "runtime": writer.comparison.runtime,
        **agreement.to_dict(),
        "sizes": writer.comparison.sizes,
    }
    content["quantization"] = {
        "artefact_sha256": content["artefact"]["sha256"],
        "budget": {**_entry(text, trials, max_drop, drop), "best_int8": about or None},
    }
    return content


def _entry(
    text: str, trials: Sequence[Trial], max_drop: float, drop: PairedDrop | None
) -> dict[str, Any]:
    return {
        "max_drop": max_drop,
        "verdict": text,
        # The drop is within the budget even at the upper end of its interval.
        "certain": drop is not None and drop.high <= max_drop,
        "trials": [trial.to_dict() for trial in trials],
    }


@torch.inference_mode()
def _right(
    writer: Writer, folder: Path, content: dict[str, Any], data: Any, batches: Any
) -> np.ndarray:
    """Return whether the artefact in `folder` classifies each image correctly."""
    model = ArtefactModel(writer.load(folder, content), content, data)
    return torch.cat([class_map(model(images)) == labels for images, labels in batches]).numpy()
