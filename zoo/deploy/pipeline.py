"""Export a model: fuse, convert, reload, compare, describe. Only a verified artefact is kept."""

import contextlib
import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo import registry
from zoo.deploy import (
    atomic_output,
    files,
    formats,
    int8_graph,
    manifest,
    prediction_example,
    schema,
)
from zoo.deploy.agreement import Agreement
from zoo.deploy.comparison import Comparison, compare_artefact
from zoo.deploy.formats import Exporter, Format
from zoo.deploy.formats import get_format as get_format
from zoo.deploy.manifest import Origin
from zoo.deploy.spec import ExportSpec
from zoo.deploy.tracing import WithPrePostProcessing
from zoo.display import Displayed, byte_count
from zoo.environment import need, versions
from zoo.errors import BadInput, unknown_value
from zoo.inputs import input_of
from zoo.progress import phase
from zoo.reparam import reparameterize

PACKAGES = ("zoo", "torch", "timm")  # packages whose versions every manifest states


@dataclass(frozen=True)
class ExportOptions:
    """Keyword arguments of `zoo.export`.

    Attributes:
        input_size: B C H W (B C D H W for volumes) to export for; None: one image of the size that
            the model was published for.
        dynamic_batch: The artefact accepts any B; False: only that of `input_size`. None: True if
            the format supports it.
        dynamic_size: The artefact accepts any H and W, and is compared at further sizes.
        opset: Version of ONNX's operator set; None: the exporter's default.
        half: Store the weights in float16.
        preprocess: The artefact takes uint8 and normalises it.
        postprocess: The artefact returns probabilities, the class of every pixel, or detections
            after non-maximum suppression.
        fuse: Re-parameterise the model first.
        overwrite: Replace an existing artefact.
        origin: What the manifest states about the model's origin.
    """

    input_size: Sequence[int] | None = None
    dynamic_batch: bool | None = None
    dynamic_size: bool = False
    opset: int | None = None
    half: bool = False
    preprocess: bool = False
    postprocess: bool = False
    fuse: bool = True
    overwrite: bool = False
    origin: Origin | None = None


@dataclass(frozen=True, repr=False)
class Artefact(Displayed):
    """A finished export.

    Attributes:
        path: The artefact.
        manifest_path: The manifest next to it.
        manifest: Content of the manifest.
        agreement: How close its outputs are to the model's; None if they were not compared.
    """

    path: Path
    manifest_path: Path
    manifest: dict[str, Any]
    agreement: Agreement | None

    def summary(self, has_weights: bool = True) -> str:
        """Return one line: the model, the file, its size in MiB, the input shape, the nodes.

        Args:
            has_weights: Whether the weights are trained, as opposed to random.
        """
        made, model = self.manifest["artefact"], self.manifest["model"]
        fused = "fused" if model["fused"] else "unfused"
        weights = "" if has_weights else ", random weights"
        shape = "x".join(map(str, self.manifest["input"]["shape"]))
        opset = f", opset {made['opset']}" if "opset" in made else ""
        nodes = f", {made['nodes']} nodes" if "nodes" in made else ""
        return (
            f"{model['name'] or 'model'} ({fused}{weights}) -> {self.path}: "
            f"{byte_count(made['bytes'])}, input {shape}{opset}{nodes}"
        )

    def __str__(self) -> str:
        return self.summary()

    def to_dict(self) -> dict[str, Any]:
        """Return the paths and the manifest as a dictionary that JSON can encode."""
        paths = {"path": str(self.path), "manifest_path": str(self.manifest_path)}
        return {**paths, "manifest": self.manifest}

    def rows(self) -> list[tuple[str, str]]:
        """Return what was exported, for display."""
        made = self.manifest["artefact"]
        return [
            ("model", str(self.manifest["model"]["name"] or "from elsewhere")),
            ("file", str(self.path)),
            ("size", byte_count(made["bytes"])),
            ("input", "x".join(map(str, self.manifest["input"]["shape"]))),
            ("outputs compared", "not compared" if self.agreement is None else str(self.agreement)),
        ]


def export(model: nn.Module, format: str, path: str | os.PathLike[str], **options: Any) -> Artefact:
    """Export a model, load the artefact again, and compare it with the model.

    The artefact and its manifest are moved to `path` after they passed all checks. If anything
    fails, no file is written there.

    Args:
        model: The model, in evaluation mode; it is not changed. If it is on a GPU, a copy on the
            CPU is exported.
        format: `"onnx"`, `"pt2"`, `"torchscript"`, `"openvino"`, `"executorch"`, `"aoti"` or
            `"coreml"`.
        path: A file with the suffix of the format, or a folder for `model.onnx` or the like.
        **options: Fields of `ExportOptions`: `input_size` (B C H W), `dynamic_batch`,
            `dynamic_size`, `opset`, `half`, `preprocess`, `postprocess`, `fuse`, `overwrite` and
            `origin`.

    Returns:
        The artefact, whose manifest is `manifest.json` in the same folder.

    Raises:
        BadInput: An option has a value that cannot work, the model is in training mode, or the
            target exists or cannot be written.
        MissingExtra: A package of the format is not installed.
        NotExportable: The format does not support an option, the model cannot be converted, or the
            artefact does not match the model.
    """
    job = prepare(model, format, path, options)
    with job.folder() as folder:
        comparison = job.write(folder)
        content = job.describe(
            folder,
            precision=_precision(model, job.spec.half),
            comparison=comparison,
            entry=_comparison_entry(comparison),
        )
        return job.publish(folder, content, comparison.agreement)


@dataclass(frozen=True)
class Job:
    """An export whose arguments have been checked; nothing is written yet.

    Attributes:
        model: The model, on the CPU.
        variant: The model that is converted: `model` itself or its fused copy.
        format_name: Name of the format.
        format: The format.
        origin: Where the model comes from.
        spec: The requested sizes and precision.
        wrap: Adds the requested pre- and postprocessing to a model.
        target: Path of the finished artefact.
        overwrite: Whether it may replace another one.
    """

    model: nn.Module
    variant: nn.Module
    format_name: str
    format: Format
    origin: Origin
    spec: ExportSpec
    wrap: Callable[[nn.Module], nn.Module]
    target: Path
    overwrite: bool

    def folder(self) -> contextlib.AbstractContextManager[Path]:
        """Return a context with a temporary folder, in which no other export has this target."""
        return atomic_output.temporary_folder(self.target, self.model, self.overwrite)

    @property
    def exporter(self) -> Exporter:
        """The module that writes the format."""
        return self.format.load_exporter()

    def write(self, folder: Path) -> Comparison:
        """Write the artefact to `folder`, load it again and compare it with the model."""
        draft = folder / self.target.name
        with phase(f"tracing, and writing {self.format_name}"):
            self.exporter.convert(self.wrap(self.variant), draft, self.spec)
        # The unfused model is the reference, so that fusing is verified as well.
        return compare_artefact(self.wrap(self.model), draft, self.format.runtime, self.spec)

    def describe(
        self,
        folder: Path,
        *,
        precision: str,
        comparison: Comparison,
        entry: dict[str, Any],
        packages: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the manifest of the artefact in `folder`.

        Args:
            folder: The folder that it was written to.
            precision: `"float32"`, `"float16"` or `"int8"`.
            comparison: Comparison of the artefact with the model.
            entry: The entry `comparison` of the manifest.
            packages: Packages that took part besides those of the exporter.
        """
        draft, wrapped = folder / self.target.name, self.wrap(self.model)
        inside = wrapped if isinstance(wrapped, WithPrePostProcessing) else None
        postprocessing = inside.postprocessing if inside else None
        task = manifest.task_of(self.model, self.origin)
        return {
            "format": self.format_name,
            "artefact": {**files.describe(draft), **self.exporter.describe(draft)},
            **manifest.describe_model(self.model, self.origin, _is_fused(self.variant)),
            "precision": precision,
            "input": manifest.describe_input(
                self.model,
                self.origin,
                self.exporter.INPUT,
                self.spec,
                inside is not None and inside.takes_pixels,
                comparison.multiple,
            ),
            "outputs": manifest.describe_outputs(comparison.outputs, task, postprocessing),
            "postprocessing": postprocessing,
            "comparison": entry,
            "versions": versions(*PACKAGES, *self.exporter.PACKAGES, *packages),
        }

    def publish(
        self,
        folder: Path,
        content: dict[str, Any],
        agreement: Agreement | None,
        extra: Sequence[str] = (),
    ) -> Artefact:
        """Move the artefact from `folder` to its target, with its manifest.

        Args:
            folder: The folder that it was written to.
            content: The manifest.
            agreement: How close the outputs are to the model's, for the result.
            extra: Names of further files in `folder` to move next to the artefact.
        """
        manifest.write(content, folder / files.MANIFEST)
        extra = [*extra, *prediction_example.write(content, folder)]
        atomic_output.publish(folder, self.target, extra, overwrite=self.overwrite)
        return Artefact(self.target, self.target.parent / files.MANIFEST, content, agreement)


def prepare(
    model: nn.Module, format: str, path: str | os.PathLike[str], given: dict[str, Any]
) -> Job:
    """Check the arguments of `export` and fuse the model; write nothing.

    Arguments and errors are those of `export`; `given` has its `options`.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"model={_kind(model)} is not an nn.Module; give the model itself")
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise BadInput(f"path={_kind(path)} is no path; give a file or a folder")
    options = _options(given)
    kind = get_format(format)
    origin = options.origin or Origin()
    if any(module.training for module in model.modules()):
        raise BadInput("the model is in training mode; call model.eval() before exporting it")
    formats.check_options(
        format,
        dynamic_batch=options.dynamic_batch,
        dynamic_size=options.dynamic_size,
        preprocess=options.preprocess,
        opset=options.opset,
    )
    manifest.check_class_names(model, origin)
    model = _on_cpu(model)
    dynamic_batch = options.dynamic_batch
    spec = ExportSpec(
        input_size=_input_size(model, origin.name, options.input_size),
        dynamic_batch=kind.supports("dynamic_batch") if dynamic_batch is None else dynamic_batch,
        dynamic_size=options.dynamic_size,
        opset=options.opset,
        half=options.half,
        multiple=_multiple(origin),
    )
    wrap = _wrapping(model, origin, options, len(spec.input_size) - 2)
    target = atomic_output.resolve_target(Path(path), kind, options.overwrite)
    need(f"format {format!r}", kind.load_exporter().PACKAGES)
    variant = model
    if int8_graph.is_converted(model):
        int8_graph.check_export(model, format, spec, options.fuse)
    elif options.fuse:
        with phase("fusing"):
            variant = reparameterize(model)
    return Job(model, variant, format, kind, origin, spec, wrap, target, options.overwrite)


def _kind(value: object) -> str:
    """Return a value as a message shows it: itself if it is plain, else its type."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value) if plain else type(value).__name__


def _options(given: dict[str, Any]) -> ExportOptions:
    """Return the options of `export`.

    Raises:
        BadInput: An option is unknown, or has a value of another type.
    """
    names = [entry.name for entry in dataclasses.fields(ExportOptions)]
    for name in given:
        if name not in names:
            raise BadInput(unknown_value("option of export", name, names))
    options = ExportOptions(**given)
    for name in ("dynamic_size", "half", "preprocess", "postprocess", "fuse", "overwrite"):
        value = getattr(options, name)
        if not isinstance(value, bool):
            raise BadInput(f"{name}={_kind(value)} must be True or False")
    if not isinstance(options.dynamic_batch, bool | None):
        raise BadInput(f"dynamic_batch={_kind(options.dynamic_batch)} must be True, False or None")
    opset = options.opset
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int)):
        raise BadInput(f"opset={_kind(opset)} must be an integer or None")
    if not isinstance(options.origin, Origin | None):
        raise BadInput(f"origin={_kind(options.origin)} must be a zoo.deploy.manifest.Origin")
    return options


def convert(
    model: nn.Module, file: Path, *, input_size: tuple[int, ...], dynamic_batch: bool
) -> None:
    """Write a model to `file` in the format of its suffix; do not verify or describe it.

    Args:
        model: The model, in evaluation mode.
        file: Ends with the suffix of a format.
        input_size: B C H W, or B C D H W for volumes.
        dynamic_batch: The file accepts any B.
    """
    exporter = formats.format_of_file(file.name).load_exporter()
    exporter.convert(model, file, ExportSpec(tuple(input_size), dynamic_batch))


def _comparison_entry(comparison: Comparison) -> dict[str, Any]:
    """Return the entry `comparison` of a manifest."""
    if comparison.agreement is None:
        return {
            "runtime": None,
            "proven": False,
            "why": "no runtime on this platform loads the format; the file was converted, validated"
            " by the format's own tools and read again, but its outputs were not compared",
        }
    agreement = comparison.agreement.to_dict()
    return {"runtime": comparison.runtime, **agreement, "sizes": comparison.sizes}


def _wrapping(
    model: nn.Module, origin: Origin, options: ExportOptions, axes: int
) -> Callable[[nn.Module], nn.Module]:
    """Return the function that adds the requested pre- and postprocessing to a model.

    Raises:
        BadInput: Mean and std are unknown, or the task has no postprocessing.
    """
    if not (options.preprocess or options.postprocess):
        return lambda variant: variant
    known = manifest.preprocessing_of(model, origin)
    if options.preprocess and not (known["mean"] and known["std"]):
        raise BadInput(
            "preprocess=True needs the model's mean and std, which are unknown; pass them in"
            " origin.preprocessing"
        )
    postprocessing = None
    if options.postprocess:
        task = manifest.task_of(model, origin)
        if task not in schema.POSTPROCESSING:
            raise BadInput(
                f"postprocess=True does not apply to {task}, which has no classes; leave it out"
            )
        postprocessing = schema.POSTPROCESSING[task]
    statistics = {"mean": known["mean"], "std": known["std"]} if options.preprocess else {}
    return lambda variant: WithPrePostProcessing(
        variant, **statistics, postprocessing=postprocessing, axes=axes
    ).eval()


def _multiple(origin: Origin) -> int | None:
    """Return the number of pixels that sides must be multiples of; None if unknown."""
    if origin.name is None or registry.is_timm(origin.name):
        return None
    return registry.model_info(origin.name).get("input", {}).get("multiple")


def _input_size(model: nn.Module, name: str | None, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return B C H W or B C D H W: the given size, or one image of the published size."""
    published = input_of(model, name)["size"]
    lengths = (
        (len(published) + 1,) if published else (4, 5)
    )  # lengths of the shapes of images and volumes
    if given is None:
        if published is None:
            raise BadInput("the model has no default input size; pass input_size=(1, 3, H, W)")
        given = (1, *published)
    size = tuple(given) if isinstance(given, Iterable) else (given,)
    numbers = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in size)
    if not numbers or len(size) not in lengths:
        expected = {4: "four positive integers, B C H W", 5: "five positive integers, B C D H W"}
        raise BadInput(f"input_size={size!r} must be {expected[lengths[0]]}")
    return size


def _on_cpu(model: nn.Module) -> nn.Module:
    """Return the model itself if it is on the CPU, else a copy that is."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return model if all(x.device.type == "cpu" for x in tensors) else copy.deepcopy(model).cpu()


def _precision(model: nn.Module, half: bool) -> str:
    return "int8" if int8_graph.is_converted(model) else "float16" if half else "float32"


def _is_fused(model: nn.Module) -> bool:
    return bool(getattr(model, "reparameterized", False))
