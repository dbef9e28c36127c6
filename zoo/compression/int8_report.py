"""Float and int8 compared: score, agreement, error, size and latency."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.binary import class_map
from zoo.compression.paired import PairedDrop, paired_drop
from zoo.compression.signal_to_noise import QUIET, SignalToNoise
from zoo.deploy import files
from zoo.deploy.schema import TO_IMAGES
from zoo.errors import BadInput
from zoo.profiling.latency import compare
from zoo.progress import phase, track
from zoo.runtimes.artefacts import LoadedArtefact
from zoo.training.artefact_model import ArtefactModel
from zoo.training.tasks import Batches, Forward, get_task

Content = dict[str, Any]

# For each task: its score, and its measure of agreement.
SCORES = {
    "classification": ("top-1", "share of images with the same class"),
    "segmentation": ("mean IoU", "share of pixels with the same class"),
    "super-resolution": ("PSNR, dB", "PSNR between float and int8, dB"),
    "restoration": ("PSNR, dB", "PSNR between float and int8, dB"),
}


def check_task(task: str) -> None:
    """Raise `BadInput` for a task whose scores do not survive int8, or were never compared."""
    if task not in SCORES:
        raise BadInput(f"quantize.int8=true is not supported for {task}; leave it out")


def sizes(plain: Path, quantized: Path) -> Content:
    """Return the total bytes of both artefacts, and their ratio."""
    before, after = (files.describe(file)["bytes"] for file in (plain, quantized))
    return {"bytes": {"float": before, "int8": after, "ratio": after / before}}


def latency(both: Sequence[LoadedArtefact], takes: Content) -> Content:
    """Time both artefacts alternately, on one image if they take any number.

    Args:
        both: The float artefact and the int8 one.
        takes: Entry `input` of the manifest.
    """
    batch = takes["shape"][0]
    size = (batch if isinstance(batch, int) else 1, *takes["size"])
    plain, quantized = (loaded.runtime for loaded in both)
    with phase("timing float and int8"):
        found = compare(plain, quantized, size, min_runs=30, min_time=0.5, max_time=6)
    return {
        "latency": {
            "runtime": plain.name,
            "runtime_version": plain.version,
            "threads": plain.threads,
            "images": size[0],
            "float_p50_ms": found.a.p50,
            "int8_p50_ms": found.b.p50,
            "ratio": found.ratio,
            "low": found.low,
            "high": found.high,
            "pairs": found.n,
        }
    }


def evaluate_both(both: Sequence[LoadedArtefact], content: Content, data: Any) -> Content:
    """Evaluate both artefacts on the validation images, by the code that evaluates checkpoints.

    Args:
        both: The float artefact and the int8 one.
        content: The manifest.
        data: A datamodule, after `setup`.
    """
    task, device = get_task(data.task), torch.device("cpu")
    first, second = (ArtefactModel(loaded, content, data) for loaded in both)
    compared = _Compared(second, first, task.name)
    before = task.validate(first, track(data.val_dataloader(), "judging float"), data, device)
    batches = compared.noted(track(data.val_dataloader(), "judging int8"))
    after = task.validate(compared, batches, data, device)
    paired = {"drop": compared.drop().to_dict()} if task.name == "classification" else {}
    return {
        "task": task.name,
        "data": data.config.name,
        "evaluated_on": before.images,
        "score": {
            "name": SCORES[task.name][0],
            "float": before.score,
            "int8": after.score,
            "lost": before.score - after.score,
            "at_chance": task.name == "classification" and _at_chance(before, data.num_classes),
        },
        **paired,
        "agreement": {"what": SCORES[task.name][1], "value": compared.agreement},
        "snr_db": compared.noise.snr_db,
        "metrics": {"float": _metrics(before), "int8": _metrics(after)},
    }


def _metrics(found: Any) -> dict[str, float]:
    return {name.removeprefix("val/"): value for name, value in found.metrics().items()}


def _at_chance(found: Any, classes: int) -> bool:
    """Return whether a score is within three standard deviations of guessing."""
    share = 1 / classes
    return found.score <= share + 3 * math.sqrt(share * (1 - share) / max(found.images, 1))


class _Compared:
    """An artefact that is compared with another on each call."""

    def __init__(self, model: Forward, other: Forward, task: str) -> None:
        self.model, self.other, self.task = model, other, task
        self.noise = SignalToNoise()
        self._same = self._all = self._squares = 0.0
        self._targets: Tensor | None = None
        self._right: list[tuple[Tensor, Tensor]] = []

    def noted(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, and keep the targets of the current one."""
        for images, targets in batches:
            self._targets = targets
            yield images, targets

    def drop(self) -> PairedDrop:
        """Return the drop of the top-1 accuracy from the other artefact to this one."""
        own, other = (torch.cat(part).numpy() for part in zip(*self._right, strict=True))
        return paired_drop(other, own)

    def __call__(self, images: Tensor) -> Tensor:
        own, other = self.model(images), self.other(images)
        self.noise.add(other.numpy(), own.numpy())
        if self.task in TO_IMAGES:
            self._squares += float((own.clamp(0, 1) - other.clamp(0, 1)).square().sum())
            self._all += own.numel()
        else:
            same = class_map(own) == class_map(other)
            if self.task == "classification" and self._targets is not None:
                right = (class_map(own) == self._targets, class_map(other) == self._targets)
                self._right.append(right)
            self._same += int(same.sum())
            self._all += same.numel()
        return own

    @property
    def agreement(self) -> float:
        """Share of equal predictions, or PSNR between images in dB."""
        if self.task in TO_IMAGES:
            return -10 * math.log10(max(self._squares / self._all, QUIET))
        return self._same / self._all


def table(about: Content) -> str:
    """Return a report as a table to print."""
    size, time = about["bytes"], about["latency"]
    rows = [
        (
            "size, MiB",
            f"{size['float'] / 2**20:.2f}",
            f"{size['int8'] / 2**20:.2f}",
            f"{size['ratio']:.1%} of float",
        ),
        (
            f"latency of {time['images']}, ms",
            f"{time['float_p50_ms']:.2f}",
            f"{time['int8_p50_ms']:.2f}",
            f"{time['ratio']:.2f} of float{_interval(time)}",
        ),
    ]
    if "score" in about:
        rows = [*_score_rows(about), *rows]
    rows = [("", "float", "int8", ""), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows
    )


def _score_rows(about: Content) -> list[tuple[str, str, str, str]]:
    score, agreement = about["score"], about["agreement"]
    share = about["task"] not in TO_IMAGES
    form = ".2%" if share else ".2f"
    gained = 0.0 - score["lost"]  # never a negative zero
    change = f"{100 * gained:+.2f} points" if share else f"{gained:+.2f} dB"
    if "drop" in about:
        change = PairedDrop(**about["drop"]).change
    agrees = f"{agreement['value']:.2%}" if share else f"{agreement['value']:.1f}"
    return [
        (
            score["name"],
            format(score["float"], form),
            format(score["int8"], form),
            f"{change} on {about['evaluated_on']} images",
        ),
        ("agreement", "", agrees, agreement["what"]),
    ]


def _interval(time: Content) -> str:
    return "" if time["low"] is None else f" [{time['low']:.2f}, {time['high']:.2f}]"
