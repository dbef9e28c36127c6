"""Export a model in int8 next to a float artefact, reload both, and compare them."""

import importlib
import json
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from torch import nn

from zoo.compression import int8_report, sensitivity
from zoo.compression.layers import check_names
from zoo.compression.signal_to_noise import SignalToNoise
from zoo.deploy.comparison import DYNAMIC_BATCHES, Comparison
from zoo.deploy.formats import get_format
from zoo.deploy.int8_graph import is_converted
from zoo.deploy.manifest import task_of
from zoo.deploy.pipeline import Artefact, Job, prepare
from zoo.deploy.tracing import WithPrePostProcessing
from zoo.environment import need
from zoo.errors import BadInput, NotExportable, first_line
from zoo.progress import phase
from zoo.runtimes.artefacts import LoadedArtefact

MODULES = {
    "onnx": "zoo.compression.int8_onnx",
    "openvino": "zoo.compression.int8_openvino",
    "executorch": "zoo.compression.int8_executorch",
}
UNSUPPORTED = {
    "pt2": "torch.export's programs run on PyTorch's float kernels",
    "aoti": "Inductor compiles float kernels for a CPU",
    "torchscript": "TorchScript's int8 is deprecated by PyTorch",
    "coreml": "nothing on this platform runs Core ML, so its loss could not be measured",
}
WHY = "int8 is not equal to float; `quantization` states the loss, and on which images"


def quantize(
    model: nn.Module,
    format: str,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[np.ndarray],
    keep_float: Collection[str] = (),
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
    if isinstance(keep_float, str) or not isinstance(keep_float, Collection):
        raise BadInput(f"keep_float={keep_float!r} must be a list of names of modules")
    if not isinstance(batches, Sequence) or not all(isinstance(x, np.ndarray) for x in batches):
        raise BadInput("batches must be a list of NumPy arrays, the images to calibrate on")
    job = prepare(model, format, path, options)
    int8_report.check_task(task_of(job.model, job.origin))
    quantizer: Any = importlib.import_module(MODULES[format])
    check_names(job.variant, keep_float)
    _check_batches(job, batches)
    with job.folder() as folder:
        plain = folder / "float"
        plain.mkdir()
        comparison = job.write(plain)
        wrapped = job.wrap(job.variant)
        inside = "model." if isinstance(wrapped, WithPrePostProcessing) else ""
        draft = folder / job.target.name
        kept = [inside + name for name in keep_float]
        precisions = quantizer.convert(wrapped, draft, job.spec, batches, kept)
        with phase("checking integer sums"):
            sums = quantizer.check(wrapped, draft, batches)
        content = job.describe(
            folder,
            precision="int8",
            comparison=comparison,
            entry={},
            packages=quantizer.PACKAGES,
        )
        both = [
            LoadedArtefact(file, content, comparison.runtime)
            for file in (plain / job.target.name, draft)
        ]
        _check_outputs(job, both, batches, comparison)
        content["comparison"] = _comparison_entry(both, batches, comparison)
        about = {
            "artefact_sha256": content["artefact"]["sha256"],
            # A fixed batch may be filled up with repeated images.
            "calibrated_on": len({hash(x.tobytes()) for batch in batches for x in batch}),
            "weights": "int8, one scale per output channel",
            "layers": len(precisions.int8) + len(precisions.floating),
            "int8_layers": len(precisions.int8),
            "keep_float": [name.removeprefix(inside) for name in precisions.floating],
            "integer_sums": sums,
            **int8_report.sizes(plain / job.target.name, draft),
            **int8_report.latency(both, content["input"]),
        }
        if data is not None:
            about |= int8_report.evaluate_both(both, content, data)
        content["quantization"] = about
        reports = ["quantization.json"]
        (folder / reports[0]).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if rows is not None:
            sensitivity.write(rows, folder)
            reports += ["sensitivity.json", "sensitivity.csv"]
        return job.publish(folder, content, None, reports)


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
    quantizer: Any = importlib.import_module(MODULES[format])
    need(f"format {format!r} in int8", quantizer.PACKAGES)


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


def _check_outputs(
    job: Job,
    both: Sequence[LoadedArtefact],
    batches: Sequence[np.ndarray],
    comparison: Comparison,
) -> None:
    """Raise `NotExportable` unless the artefact runs at every size of the float artefact."""
    spec = job.spec
    counts = DYNAMIC_BATCHES if spec.dynamic_batch else (spec.input_size[0],)
    generator = np.random.default_rng(0)
    for sides in comparison.sizes:
        for count in counts:
            shape = (count, spec.input_size[1], *sides)
            x = batches[0][:count] if shape[2:] == batches[0].shape[2:] else None
            if x is None or len(x) < count:
                low, high = float(batches[0].min()), float(batches[0].max())
                x = generator.uniform(low, high, shape).astype(batches[0].dtype)
            try:
                want, have = (loaded.runtime(x) for loaded in both)
            except Exception as error:  # the target's runtime refuses
                raise NotExportable(
                    f"the int8 artefact does not run on {'x'.join(map(str, shape))}: "
                    f"{first_line(error)}"
                ) from error
            if [y.shape for y in have] != [y.shape for y in want]:
                raise NotExportable(
                    f"the int8 artefact returns {[y.shape for y in have]}, the float one "
                    f"{[y.shape for y in want]}"
                )
            if not all(np.isfinite(y).all() for y in have):
                raise NotExportable(
                    "the outputs of the int8 artefact are not finite; "
                    "keep more layers in float (keep_float)"
                )


def _comparison_entry(
    both: Sequence[LoadedArtefact], batches: Sequence[np.ndarray], comparison: Comparison
) -> dict[str, Any]:
    """Return how much the outputs differ from those of the float artefact."""
    error = SignalToNoise()
    for batch in batches:
        error.add(*(loaded(batch) for loaded in both))
    assert comparison.agreement is not None
    return {
        "runtime": comparison.runtime,
        "proven": False,
        "why": WHY,
        "compared_with": "the float artefact, on the calibration images",
        "images": error.images,
        "max_abs_error": error.largest,
        "snr_db": error.snr_db,
        "sizes": comparison.sizes,
        "float": comparison.agreement.to_dict(),
    }
