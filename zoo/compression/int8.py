"""Export a model in int8 next to a float artefact, reload both, and compare them."""

import importlib
import json
import os
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
from torch import nn

from zoo.compression import budget, int8_report, sensitivity
from zoo.compression.calibration import Batch
from zoo.compression.int8_writer import Writer
from zoo.compression.layers import check_names
from zoo.compression.recipe import Quantizer
from zoo.compression.recipe import make as make_recipe
from zoo.deploy.formats import get_format
from zoo.deploy.int8_graph import is_converted
from zoo.deploy.manifest import task_of
from zoo.deploy.pipeline import Artefact, Job, prepare
from zoo.environment import need
from zoo.errors import BadInput, NotExportable
from zoo.training.tasks import get_task

MODULES = {
    "onnx": "zoo.compression.int8_onnx",
    "openvino": "zoo.compression.int8_openvino",
    "executorch": "zoo.compression.int8_executorch",
}
HELD_BATCHES = 4  # of 32 images, that the sensitivity of layers is measured on
UNSUPPORTED = {
    "pt2": "torch.export's programs run on PyTorch's float kernels",
    "aoti": "Inductor compiles float kernels for a CPU",
    "torchscript": "TorchScript's int8 is deprecated by PyTorch",
    "coreml": "nothing on this platform runs Core ML, so its loss could not be measured",
}


def quantize(
    model: nn.Module,
    format: str,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str] = (),
    ranges: str | None = None,
    repairs: Collection[str] = ("biases",),
    max_drop: float | None = None,
    search_on: Sequence[Batch] = (),
    data: Any = None,
    rows: Sequence[sensitivity.Row] | None = None,
    **options: Any,
) -> Artefact:
    """Export a model in int8 and measure how much the quality drops.

    The float artefact is exported first and compared with the model, as `zoo.export` does. The int8
    artefact is then compared with it: outputs, size, latency and, with `data`, the score.

    Args:
        model: The model, in evaluation mode; it is not changed.
        format: `"onnx"`, `"openvino"` or `"executorch"`.
        path: A file or a folder, as for `zoo.export`.
        batches: Images to calibrate the ranges of activations on, B C H W as the artefact takes
            them: float32 and normalised, or bytes with `preprocess`. A fixed batch needs batches of
            exactly that many images.
        keep_float: Names of modules of the fused model that stay in float.
        ranges: How ranges of activations are found: `"minmax"`, `"percentile"`, `"mse"` or
            `"entropy"`; None: `"mse"` for ExecuTorch, otherwise `"minmax"`.
        repairs: Some of `"equalize"`, `"rounding"` and `"biases"`, see `repairs`.
        max_drop: Largest drop of the top-1 accuracy in percentage points. Ranges, repairs and
            layers in float are then searched for, see `budget`; if no int8 artefact is within this
            budget and faster, the float artefact is what is left at `path`.
        search_on: With `max_drop`: images with classes to search on, prepared as `data` does, other
            than the validation images.
        data: A datamodule, after `setup`; both artefacts are evaluated on its validation images.
        rows: Result of `zoo.compression.sensitivity.measure`, written next to the artefact.
        **options: Options of `zoo.export`.

    Returns:
        The artefact; `manifest["quantization"]` contains the measurements.

    Raises:
        BadInput: An argument has a value that cannot work.
        MissingExtra: A package of the format is not installed.
        NotExportable: The format does not support int8, the model cannot be converted, or the
            artefact's outputs are not finite or have other shapes.
    """
    check(format, half=options.get("half", False))
    if is_converted(model):
        raise BadInput(
            "quantize.int8=true: the model was trained with train.qat and is in int8 already; "
            "leave quantize.int8 out"
        )
    quantizer = _quantizer(format)
    recipe = make_recipe(quantizer.RANGES if ranges is None else ranges, repairs, keep_float)
    if not isinstance(batches, Sequence) or not all(isinstance(x, np.ndarray) for x in batches):
        raise BadInput("batches must be a list of NumPy arrays, the images to calibrate on")
    job = prepare(model, format, path, options)
    task = task_of(job.model, job.origin)
    int8_report.check_task(task)
    if max_drop is not None:
        budget.check(max_drop, task, recipe, data, search_on)
    check_names(job.variant, keep_float)
    _check_batches(job, batches)
    with job.folder() as folder:
        plain = folder / "float"
        plain.mkdir()
        comparison = job.write(plain)
        writer = Writer(job, quantizer, plain, comparison, batches)
        if max_drop is None:
            content = writer.write(recipe, folder, data)
        else:

            def ranked() -> list[str]:
                nonlocal rows
                if rows is None:
                    rows = sensitivity.measure(
                        job.variant, get_task(task), data, search_on, search_on[:HELD_BATCHES]
                    )
                return [row.layer for row in rows]

            content = budget.search(writer, recipe, folder, data, search_on, max_drop, ranked)
        about = content["quantization"]
        reports = ["quantization.json"]
        (folder / reports[0]).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if rows is not None:
            sensitivity.write(rows, folder)
            reports += ["sensitivity.json", "sensitivity.csv"]
        return job.publish(folder, content, None, reports)


def _quantizer(format: str) -> Quantizer:
    """Import the module that writes a format in int8."""
    return cast(Quantizer, importlib.import_module(MODULES[format]))


def check(format: str, *, half: bool = False) -> None:
    """Raise an error for a format that does not support int8, before a model is built.

    Raises:
        BadInput: The format is unknown, or float16 is requested as well.
        MissingExtra: A package of the format is not installed.
        NotExportable: The format does not support int8.
    """
    get_format(format)
    if format not in MODULES:
        raise NotExportable(
            f"format {format!r} with quantize.int8: {UNSUPPORTED[format]}; choose "
            f"{', '.join(MODULES)}"
        )
    if half:
        raise BadInput(
            "export.half=true and quantize.int8=true request two precisions; leave one out"
        )
    need(f"format {format!r} in int8", _quantizer(format).PACKAGES)


def _check_batches(job: Job, batches: Sequence[np.ndarray]) -> None:
    """Raise `BadInput` for calibration images that the artefact does not accept."""
    spec = job.spec
    if not batches:
        raise BadInput("batches=[]: int8 needs at least one batch of images to calibrate on")
    first = batches[0].shape
    fits = len(first) == len(spec.input_size) and first[1] == spec.input_size[1]
    sides = spec.dynamic_size or first[2:] == spec.input_size[2:]
    count = spec.dynamic_batch or all(len(x) == spec.input_size[0] for x in batches)
    if not (fits and sides and count):
        expected = ["any" if i in spec.dynamic_axes else n for i, n in
                  enumerate(spec.input_size)]  # fmt: skip
        raise BadInput(
            f"batches of {'x'.join(map(str, first))}: the artefact takes "
            f"{'x'.join(map(str, expected))}"
        )
