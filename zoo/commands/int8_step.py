"""The int8 step of `export.py`: calibrate on training images, quantise, evaluate, report."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zoo.commands import resolve
from zoo.compression import budget, calibration, int8, int8_report, recipe, sensitivity
from zoo.data import presets
from zoo.data.datamodule import ImageData
from zoo.data.presets import PREPROCESSING
from zoo.deploy.formats import get_format
from zoo.deploy.manifest import Origin, preprocessing_of
from zoo.deploy.pipeline import Artefact
from zoo.deploy.schema import TO_IMAGES
from zoo.errors import BadInput
from zoo.reparam import reparameterize
from zoo.settings import DataConfig, ExportConfig, ExportRun, QuantizeConfig
from zoo.training import logs, run_data
from zoo.training.builders import check_forward, open_evaluation_data
from zoo.training.checkpoint import folder_of
from zoo.training.checks import check_value
from zoo.training.tasks import get_task, task_of_model

LAYERS_SHOWN = 5  # printed rows of the sensitivity table
EVALUATION_BATCH = 64  # images


def check_quantize(quantize: QuantizeConfig) -> None:
    """Raise `BadInput` for invalid values."""
    for key, minimum in (("images", 1), ("keep_float", 0)):
        value = getattr(quantize, key)
        check_value(f"quantize.{key}", value, value >= minimum, f"at least {minimum}")
    ranges = "minmax" if quantize.ranges is None else quantize.ranges
    recipe.make(ranges, quantize.repairs, prefix="quantize.")
    if quantize.max_drop is None:
        return
    value = quantize.max_drop
    check_value("quantize.max_drop", value, 0 <= value < 100, "from 0 to 100 points")
    if quantize.keep_float:
        raise BadInput(
            f"quantize.keep_float={quantize.keep_float}: quantize.max_drop chooses the layers in"
            " float itself; leave one out"
        )


def refuse_unused(quantize: QuantizeConfig, explicit: resolve.Explicit) -> None:
    """Raise `BadInput` for settings that have no effect without int8."""
    defaults = QuantizeConfig()
    taken = {f"data.{key}" for key in PREPROCESSING}
    unused = [key for key in explicit if key.startswith("data.") and key not in taken]
    unused += [
        f"quantize.{key}"
        for key, value in dataclasses.asdict(quantize).items()
        if value != getattr(defaults, key)
    ]
    if unused:
        raise BadInput(
            f"{unused[0]} has no effect without quantize.int8=true; set that, or leave it out"
        )


class Int8Step:
    """Creates int8 artefacts of one model. All formats share the data and the sensitivity table.

    Args:
        settings: The resolved settings.
        explicit: Keys that the user set.
        model: The model, in evaluation mode.
        origin: The origin of the model, for the manifest.
        options: Arguments of `zoo.export`.
        has_weights: Whether the weights are trained, not random.
    """

    def __init__(
        self,
        settings: ExportRun,
        explicit: resolve.Explicit,
        model: nn.Module,
        origin: Origin,
        options: dict[str, Any],
        has_weights: bool,
    ) -> None:
        self.settings, self.explicit = settings, explicit
        self.model, self.origin = model, origin
        self.options, self.has_weights = options, has_weights
        self._data: ImageData | None = None
        self._rows: list[sensitivity.Row] | None = None

    @staticmethod
    def check_format(name: str, export: ExportConfig) -> None:
        """Raise an error for a format that does not support int8."""
        int8.check(name, half=export.half)

    def run(self, name: str, path: Path) -> Artefact:
        """Create one artefact, and print its accuracy, size and latency next to float."""
        with logs.data_warnings(logs.make_console()):
            return self._run(name, path)

    def _run(self, name: str, path: Path) -> Artefact:
        quantize, shape = self.settings.quantize, self.options["input_size"]
        if self._data is None:
            self._data = self._open_data()
        images = calibration.calibration(self._data, quantize.images)
        if self._rows is None and (quantize.sensitivity or quantize.keep_float):
            self._rows = self._sensitivity(self._data, images)
        kept = sensitivity.worst(self._rows, quantize.keep_float) if self._rows else []
        is_dynamic = self.options["dynamic_batch"]
        if is_dynamic is None:
            is_dynamic = get_format(name).supports("dynamic_batch")
        batches = calibration.arrays(
            images,
            self._data,
            pixels=self.options["preprocess"],
            batch=None if is_dynamic else shape[0],
        )
        artefact = int8.quantize(
            self.model,
            name,
            path,
            batches=batches,
            keep_float=kept,
            ranges=quantize.ranges,
            repairs=quantize.repairs,
            max_drop=quantize.max_drop,
            search_on=self._search_images(self._data),
            data=self._data,
            rows=self._rows,
            **self.options,
        )
        self._print(artefact)
        return artefact

    def _open_data(self) -> ImageData:
        """Open the data set of the saved run, or the one that the user chose."""
        name, shape = str(self.origin.name), self.options["input_size"]
        config = resolve.fit_images(
            self.settings.data,
            self.explicit,
            f"the artefact of {name}",
            shape,
            shape[1:],
            advice="set export.image_size instead",
        )
        is_multi_label = presets.task(config.name) == "multi-label"
        task = "multi-label" if is_multi_label else task_of_model(name)
        int8_report.check_task(task)
        # A model whose output is an image has output channels instead of classes.
        classes = None if task in TO_IMAGES else getattr(self.model, "num_classes", None)
        data = open_evaluation_data(
            config,
            EVALUATION_BATCH,
            preprocessing_of(self.model, self.origin),
            source=name,
            task=task,
            num_classes=classes if self.has_weights else None,
            class_names=self.origin.class_names if self.has_weights else None,
            saved_split=self._saved_split(config),
        )
        data.accept_outputs(classes)
        if classes not in (None, data.num_outputs):
            raise BadInput(
                f"{name} has {classes} classes, but data.name={config.name} has"
                f" {data.num_classes}; give weights that were trained on this data, or"
                f" model.num_classes={data.num_classes} for random weights"
            )
        check_forward(self.model, name, data)
        return data

    def _saved_split(self, config: DataConfig) -> dict[str, str] | None:
        if self.origin.weights is None:
            return None
        folder = folder_of(self.origin.weights)
        return run_data.saved_split(folder, self.origin.data, config)

    def _search_images(self, data: ImageData) -> list[calibration.Batch]:
        if self.settings.quantize.max_drop is None:
            return []
        return calibration.held_out(data, budget.SEARCHED_ON)

    def _sensitivity(
        self, data: ImageData, images: Sequence[calibration.Batch]
    ) -> list[sensitivity.Row]:
        held = calibration.held_out(data, sensitivity.HELD)
        start = time.perf_counter()
        model = reparameterize(self.model) if self.settings.export.fuse else self.model
        rows = sensitivity.measure(model, get_task(data.task), data, images, held)
        count = sum(len(part) for part, _ in held)
        seconds = time.perf_counter() - start
        print(
            f"sensitivity of {len(rows)} layers, each quantised by itself, on {count} images, in"
            f" {seconds:.0f} s:"
        )
        print(sensitivity.table(rows[:LAYERS_SHOWN], data.task))
        return rows

    def _print(self, artefact: Artefact) -> None:
        about = artefact.manifest["quantization"]
        print(artefact.summary(self.has_weights))
        if "budget" in about:
            about = _print_verdict(about)
            if about is None:
                return
        kept = about["keep_float"]
        in_float = f", {', '.join(kept)} in float" if kept else ""
        print(
            f"int8: {about['layers'] - len(kept)} of {about['layers']} layers{in_float}; calibrated"
            f" on {about['calibrated_on']} training images of {about['data']}"
        )
        print(int8_report.table(about))
        if not self.has_weights or about["score"]["at_chance"]:
            print(
                "the float model is no better than chance, so the scores do not measure the loss of"
                " int8; use trained weights"
            )
        print(f"described in {artefact.manifest_path}")


def _print_verdict(about: dict[str, Any]) -> dict[str, Any] | None:
    """Print the result of a search; return the report on the best int8 file, if there is one."""
    found = about["budget"]
    print(found["verdict"])
    if "layers" not in about:
        return found["best_int8"]
    if not found["certain"]:
        print(
            f"the interval of the change reaches beyond {found['max_drop']:g} points; more"
            " validation images would make it narrower"
        )
    return about
