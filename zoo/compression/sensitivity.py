"""Which layers cost accuracy: one layer at a time in int8, everything else in float.

This runs in PyTorch for every format: weights are rounded per output channel, the layer's input per
tensor in its calibrated range, as the runtimes do.
"""

import contextlib
import csv
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression.calibration import Batch
from zoo.compression.layers import channel_axis, layers
from zoo.compression.signal_to_noise import SignalToNoise
from zoo.deploy.schema import TO_IMAGES
from zoo.deploy.tracing import with_exportable_scans
from zoo.errors import BadInput
from zoo.runtimes.pytorch import flatten_outputs
from zoo.training.tasks import Task

HELD = 128  # training images to evaluate layers on; each layer requires a pass over them
Range = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """The accuracy that one layer costs when only this layer is in int8.

    Attributes:
        layer: Name of the layer in the fused model.
        kind: Class of the layer.
        weights: Number of elements in its weight.
        lost: Drop of the score on held-out images, in the task's unit (top-1 and IoU as shares,
            PSNR in dB); negative if the score rises.
        snr_db: Signal-to-noise ratio of the outputs in dB, see `SignalToNoise`.
    """

    layer: str
    kind: str
    weights: int
    lost: float
    snr_db: float


def measure(
    model: nn.Module,
    task: Task,
    data: Any,
    batches: Sequence[Batch],
    judged_on: Sequence[Batch],
) -> list[Row]:
    """Return the accuracy that each layer costs, the costliest layer first.

    Layers are sorted by lost score, then by the noise in the outputs: most layers do not
    change the score on a few hundred images, and random gains count as zero.

    Args:
        model: The fused model, in evaluation mode; it is not changed.
        task: Computes the score.
        data: Datamodule of the images.
        batches: Images to calibrate the ranges on.
        judged_on: Other images to evaluate on, with targets.
    """
    model = with_exportable_scans(model)
    device = torch.device("cpu")
    recorder = _Outputs(model)

    def evaluate() -> tuple[float, list[Tensor]]:
        recorder.kept = []
        return task.validate(recorder, judged_on, data, device).score, recorder.kept

    with torch.inference_mode():
        ranges = _ranges(model, batches)
        score, expected = evaluate()
        rows = []
        for name, layer in layers(model).items():
            if name not in ranges:  # a layer that this model never calls
                continue
            with _in_int8(layer, ranges[name]):
                reduced, actual = evaluate()
            weight: Any = layer.weight
            noise = SignalToNoise()
            for before, after in zip(expected, actual, strict=True):
                noise.add(before.numpy(), after.numpy())
            lost = score - reduced
            rows.append(Row(name, type(layer).__name__, weight.numel(), lost, noise.snr_db))
    return sorted(rows, key=lambda row: (-max(row.lost, 0.0), row.snr_db))


def worst(rows: Sequence[Row], count: int) -> list[str]:
    """Return the names of the `count` costliest layers.

    Raises:
        BadInput: `count` is negative, or not below the number of layers.
    """
    if not 0 <= count < len(rows):
        raise BadInput(
            f"quantize.keep_float={count} must be from 0 to {len(rows) - 1}: the model has "
            f"{len(rows)} layers"
        )
    return [row.layer for row in rows[:count]]


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write `sensitivity.csv` and `sensitivity.json`."""
    plain = [dataclasses.asdict(row) for row in rows]
    (folder / "sensitivity.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    with (folder / "sensitivity.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        table.writeheader()
        table.writerows(plain)


def table(rows: Sequence[Row], task: str) -> str:
    """Return rows as lines to print."""
    db = task in TO_IMAGES
    lines = [("layer", "kind", "weights", "lost, dB" if db else "lost, points", "SNR, dB")]
    for row in rows:
        lost = row.lost if db else 100 * row.lost
        cells = (row.layer, row.kind, f"{row.weights:,}", f"{lost:.2f}", f"{row.snr_db:.1f}")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  "
        + "  ".join(f"{x:>{w}}" for x, w in zip(rest, widths[2:], strict=True))
        for a, b, *rest in lines
    )


class _Outputs:
    """A model that records its outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.kept: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        y = flatten_outputs(self.model(images))[0]
        self.kept.append(y)
        return y


def _ranges(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Range]:
    """Return the smallest and the largest input of each layer."""
    found: dict[str, Range] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (float(x) for x in inputs[0].aminmax())
        before = found.get(name, (0.0, 0.0))  # padding needs zero in the range
        found[name] = min(low, before[0]), max(high, before[1])

    hooks = [
        layer.register_forward_pre_hook(functools.partial(note, name))
        for name, layer in layers(model).items()
    ]
    try:
        for images, _ in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextlib.contextmanager
def _in_int8(layer: nn.Module, limits: Range) -> Iterator[None]:
    """Round the weights and inputs of a layer to int8 within the context."""
    parameter: Any = layer.weight
    before = parameter.detach().clone()
    hook = layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], limits),))
    parameter.copy_(rounded_weight(before, channel_axis(layer)))
    try:
        yield
    finally:
        parameter.copy_(before)
        hook.remove()


def rounded(x: Tensor, limits: Range) -> Tensor:
    """Return values rounded to 255 steps of a range."""
    low, high = limits
    scale = (high - low) / 255 or 1.0
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def rounded_weight(weight: Tensor, axis: int) -> Tensor:
    """Return weights rounded to int8, with one scale per output channel."""
    others = [i for i in range(weight.ndim) if i != axis]
    scale = weight.abs().amax(dim=others, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-127, 127) * scale
