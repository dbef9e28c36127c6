"""Diagnose an evaluation: gather what the outputs say about single images, and write it down."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.diagnosis import class_maps, copies, findings, labels, page
from zoo.diagnosis.labels import Suspect
from zoo.progress import phase, track
from zoo.training.confidence import Predictions
from zoo.training.report_files import class_names
from zoo.training.tasks import denormalized

SUSPECTS = "suspects.csv"
FLIPS = "flips.csv"
MOST_PICTURES = 24  # in a section of the page

Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """A model whose predictions are compared with those that are evaluated.

    Attributes:
        name: What it is, for the page.
        outputs: Maps normalised images N C H W to logits N K.
    """

    name: str
    outputs: Outputs


class Diagnosis:
    """What is found out about the images of an evaluation; called once by `evaluate_on`.

    Args:
        data: The data module, after `setup`.
        cut: The classifier in two parts, for class-activation maps; None if there are none.
        features: Maps normalised images N C H W to features N C, to doubt labels of images that
            the model was trained on.
        reference: The float model, for an artefact; None to compare with nothing.
        with_train: Whether to look for wrong labels among the training images, too.
    """

    def __init__(
        self,
        data: Any,
        *,
        cut: class_maps.Cut | None,
        features: Outputs,
        reference: Reference | None,
        with_train: bool,
    ) -> None:
        self.data, self.cut, self.features = data, cut, features
        self.reference, self.with_train = reference, with_train
        self.copies: list[dict[str, list[str]]] | None = None
        self.train_images: int | None = None

    def __call__(self, found: Predictions) -> dict[str, Any]:
        """Return the entries of `report.json`, and keep the rest for `write`."""
        self.logits, self.targets = found.logits, found.targets
        self.keys = image_keys(self.data, len(self.targets))
        self.flips: list[findings.Flip] = []
        changes = None if self.reference is None else self._changes(self.reference)
        self.suspects = self._suspects()
        self._find_copies()
        return {
            "abstention": findings.abstention(self.logits, self.targets),
            "suspects": sum(doubted for *_, doubted in self.suspects),
            "copies_across_splits": None if self.copies is None else len(self.copies),
            **({} if changes is None else {"changes": changes}),
        }

    def _changes(self, reference: Reference) -> dict[str, Any]:
        names = class_names(self.data)
        batches = track(self.data.val_dataloader(), "evaluating the float model")
        with torch.inference_mode():
            guesses = torch.cat(
                [reference.outputs(images).argmax(1).cpu() for images, _ in batches]
            )
        before = {key: names[n] for key, n in zip(self.keys, guesses.tolist(), strict=True)}
        labels_and_guesses = zip(
            self.targets.tolist(), self.logits.argmax(dim=1).tolist(), strict=True
        )
        after = {
            key: (names[label], names[guess])
            for key, (label, guess) in zip(self.keys, labels_and_guesses, strict=True)
        }
        found = findings.change(before, after)
        self.flips = found.pop("flips")
        return {"reference": reference.name, **found}

    def _suspects(self) -> list[tuple[str, int, Suspect, bool]]:
        """Return (split, index, suspect, is_doubted), the most doubtful labels first."""
        if not self.with_train:
            doubted = findings.is_doubted(self.logits, self.targets).tolist()
            found = findings.suspects(self.logits, self.targets)
            return [("val", one.index, one, doubted[one.index]) for one in found]
        values, numbers, places = [], [], []
        for split in ("train", "val"):
            for images, targets in track(
                self.data.eval_dataloader(split), f"features of the {split} images"
            ):
                with torch.inference_mode():
                    values.append(self.features(images).flatten(1).float().cpu().numpy())
                numbers += targets.tolist()
            places += [(split, index) for index in range(len(self.data.source(split)))]
        with phase("looking for wrong labels"):
            ranked = labels.ranked(np.concatenate(values), numbers)
        return [(*places[one.index], one, one.suggested != numbers[one.index]) for one in ranked]

    def _find_copies(self) -> None:
        self.train_images = copies.train_images(self.data)
        if self.train_images is None:
            return
        if self.with_train or self.train_images + len(self.targets) <= copies.MOST:
            self.copies = copies.across_splits(self.data)

    def write(self, folder: Path, report: dict[str, Any], title: str) -> None:
        """Write the tables and the page."""
        names = class_names(self.data)
        columns = ("split", "image", "class", "suggested", "class_probability", "doubted")
        keys = {"val": self.keys}
        if self.with_train:
            keys["train"] = image_keys(self.data, len(self.data.source("train")), "train")
        rows = []
        for split, index, one, doubted in self.suspects:
            own = names[self._label(split, index)]
            shown = (own, names[one.suggested], f"{one.confidence:.6f}", int(doubted))
            rows.append((split, keys[split][index], *shown))
        write_rows(folder / SUSPECTS, columns, rows)
        if self.reference is not None:
            write_rows(
                folder / FLIPS,
                ("image", "class", "before", "after"),
                [(one.image, one.label, one.before, one.after) for one in self.flips],
            )
        content = page.Content(
            logits=self.logits,
            targets=self.targets,
            worst=self._worst_shown(),
            suspects=self._suspects_shown(),
            flips=self._flips_shown(),
            copies=self.copies,
            train_images=self.train_images,
            with_train=self.with_train,
        )
        (folder / page.NAME).write_text(
            page.render(content, report, title), encoding="utf-8", errors="replace"
        )

    def _label(self, split: str, index: int) -> int:
        return int(self.targets[index] if split == "val" else self.data.source(split).labels[index])

    def _worst_shown(self) -> list[page.Shown]:
        """Return the images with the worst mistakes, with maps of what was predicted."""
        names = class_names(self.data)
        numbers = findings.worst(self.logits, self.targets)[:MOST_PICTURES]
        shares = self.logits.softmax(dim=1)
        captions = []
        for index in numbers:
            guess = int(self.logits[index].argmax())
            captions.append(
                f"{self.keys[index]}: {names[int(self.targets[index])]}, predicted {names[guess]}"
                f" ({float(shares[index, guess]):.0%})"
            )
        return self._pictures([("val", n) for n in numbers], captions, with_maps=True)

    def _suspects_shown(self) -> list[page.Shown]:
        """Return the images whose labels are doubted most."""
        names = class_names(self.data)
        chosen = [row for row in self.suspects if row[-1]][:MOST_PICTURES]
        captions = []
        for split, index, one, _ in chosen:
            key = self.keys[index] if split == "val" else self.data.source(split).key(index)
            own, suggested = names[self._label(split, index)], names[one.suggested]
            captions.append(f"{split} {key}: {own}, or {suggested}?")
        return self._pictures([row[:2] for row in chosen], captions)

    def _flips_shown(self) -> list[page.Shown]:
        """Return images with another prediction than that of the reference."""
        numbers = {key: index for index, key in enumerate(self.keys)}
        chosen = self.flips[:MOST_PICTURES]
        captions = [
            f"{one.image}: {one.label}, was {one.before}, now {one.after}" for one in chosen
        ]
        return self._pictures([("val", numbers[one.image]) for one in chosen], captions)

    def _pictures(
        self, chosen: list[tuple[str, int]], captions: list[str], *, with_maps: bool = False
    ) -> list[page.Shown]:
        """Return the images as the model sees them; captions without pictures for shards."""
        shown = []
        for (split, index), caption in zip(chosen, captions, strict=True):
            if self.data.streaming:
                shown.append(page.Shown(caption))
                continue
            images, _ = self.data.eval_dataloader(split).dataset.load([(0, index)])
            pixels = denormalized(self.data, images)[0].clamp(0, 1)
            mapped = None
            if with_maps and self.cut is not None:
                guess = self.logits[index].argmax()[None]
                values = class_maps.class_maps(self.cut, images, guess)
                mapped = None if values is None else class_maps.overlay(pixels, values[0])
            whole = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
            shown.append(page.Shown(caption, whole, mapped))
        return shown


def image_keys(data: Any, count: int, split: str = "val") -> list[str]:
    """Return what identifies each image of a split; its number in shards."""
    if data.streaming:
        return [str(index) for index in range(count)]
    source = data.source(split)
    return [source.key(index) for index in range(count)]


def write_rows(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Write a table as CSV; names of files may have bytes that are not UTF-8."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
