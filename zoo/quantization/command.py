"""The command `export.py`, with `quantize.int8` or without."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.config import ExportRun
from zoo.errors import BadInput
from zoo.exporters import command
from zoo.exporters.command import Request, is_fresh, say_file
from zoo.exporters.formats import get_format
from zoo.exporters.pipeline import Artefact
from zoo.quantization import calibration, pipeline, report, sensitivity
from zoo.quantization.config import QuantizeConfig
from zoo.quantization.data import open_data
from zoo.reparam import reparameterize
from zoo.training import overrides as command_line
from zoo.training.tasks import get_task

SHOWN = 5  # layers that are printed


def run(cfg: Any, overrides: Sequence[str] | None = None) -> list[Artefact]:
    """Export according to the configuration of `export.py`, and print a summary.

    Args:
        cfg: The configuration. A checkpoint of `train.py` provides its model and data.
        overrides: The keys that were set; by default those of the command line.

    Raises:
        ZooError: A setting cannot work, or has no effect.
    """
    if overrides is None:
        overrides = command_line.from_command_line()
    if not cfg.quantize.int8:
        _check_unused(cfg, overrides)
        return command.run(cfg, overrides)
    for key in ("images", "keep_float"):
        least = {"images": 1, "keep_float": 0}[key]
        if cfg.quantize[key] < least:
            raise BadInput(f"quantize.{key}={cfg.quantize[key]} must be at least {least}")
    work = _Work(cfg, overrides)
    return command.each(cfg, overrides, work.make, work.check)


def _check_unused(cfg: Any, overrides: Sequence[str]) -> None:
    """Raise `BadInput` for int8 keys without `quantize.int8`."""
    asked = command_line.asked(cfg, overrides, ExportRun)
    plain = dataclasses.asdict(QuantizeConfig())
    unused = [key for key in asked if key.startswith("data.")]
    unused += [f"quantize.{key}" for key in plain if cfg.quantize[key] != plain[key]]
    if unused:
        raise BadInput(
            f"{unused[0]} has no effect without quantize.int8=true; add that, or leave it out"
        )


class _Work:
    """What several formats share: the data, and the sensitivity of each layer.

    Args:
        cfg: The configuration.
        overrides: The keys that were set.
    """

    def __init__(self, cfg: Any, overrides: Sequence[str]) -> None:
        self.cfg, self.overrides = cfg, overrides
        self.data: Any = None
        self.rows: list[sensitivity.Row] | None = None

    def check(self, format: str) -> None:
        """Refuse a format that does not support int8."""
        pipeline.check(format, half=self.cfg.export.half)

    def make(self, request: Request) -> Artefact:
        """Write one artefact, and print its report."""
        asked, options = self.cfg.quantize, request.options
        shape = options["input_size"]
        if self.data is None:
            self.data = open_data(self.cfg, self.overrides, request.model, request.origin, shape)
        images = calibration.calibration(self.data, asked.images)
        if self.rows is None and (asked.sensitivity or asked.keep_float):
            self.rows = self._sensitivity(request.model, images)
        kept = sensitivity.worst(self.rows, asked.keep_float) if self.rows else []
        opened = get_format(request.format).can("dynamic_batch")
        if options["dynamic_batch"] is not None:
            opened = options["dynamic_batch"]
        batches = calibration.arrays(
            images,
            self.data,
            pixels=options["preprocess"],
            batch=None if opened else shape[0],
        )
        artefact = pipeline.quantize(
            request.model,
            request.format,
            request.path,
            batches=batches,
            keep_float=kept,
            data=self.data,
            rows=self.rows,
            **options,
        )
        self._say(artefact)
        return artefact

    def _sensitivity(
        self, model: nn.Module, images: Sequence[calibration.Batch]
    ) -> list[sensitivity.Row]:
        held = calibration.held_out(self.data, sensitivity.HELD)
        begin = time.perf_counter()
        form = reparameterize(model) if self.cfg.export.fuse else model
        rows = sensitivity.measure(form, get_task(self.data.task), self.data, images, held)
        count = sum(len(part) for part, _ in held)
        seconds = time.perf_counter() - begin
        print(f"{len(rows)} layers, one at a time in int8 on {count} images, in {seconds:.0f} s:")
        print(sensitivity.table(rows[:SHOWN], self.data.task))
        return rows

    def _say(self, artefact: Artefact) -> None:
        about = artefact.manifest["quantization"]
        say_file(artefact, self.cfg)
        kept = about["keep_float"]
        float_ = f", {', '.join(kept)} in float" if kept else ""
        print(
            f"int8: {about['layers'] - len(kept)} of {about['layers']} layers{float_}; calibrated "
            f"on {about['calibrated_on']} training images of {about['data']}"
        )
        print(report.table(about))
        if is_fresh(self.cfg) or about["score"]["at_chance"]:
            print("the float model itself guesses: its score says nothing of int8; give weights")
        print(f"described in {artefact.manifest_path}")
