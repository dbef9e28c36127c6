"""Model -> artefact: fuse, convert, load it again, compare, describe. Only what passed is kept."""

import copy
import importlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo import registry
from zoo.deploy import atomic_output, files, formats, int8_graph, manifest
from zoo.deploy.agreement import Agreement
from zoo.deploy.comparison import Check, check
from zoo.deploy.formats import get_format as get_format
from zoo.deploy.manifest import Origin
from zoo.deploy.spec import Settings
from zoo.deploy.tracing import Packaged
from zoo.environment import need, versions
from zoo.errors import BadInput
from zoo.inputs import input_of
from zoo.reparam import reparameterize


@dataclass(frozen=True)
class Artefact:
    """A finished export.

    Attributes:
        path: The artefact.
        manifest_path: The manifest beside it.
        manifest: Its content.
        agreement: How it compares with the model; None of a format that nothing here can run.
    """

    path: Path
    manifest_path: Path
    manifest: dict[str, Any]
    agreement: Agreement | None

    def summary(self, has_weights: bool = True) -> str:
        """Return one line: what was exported, to which file, how large.

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
            f"{model['name']} ({fused}{weights}) -> {self.path}: {made['bytes'] / 2**20:.1f} MiB, "
            f"input {shape}{opset}{nodes}"
        )


def export(
    model: nn.Module,
    format: str,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    half: bool = False,
    preprocess: bool = False,
    postprocess: bool = False,
    fuse: bool = True,
    overwrite: bool = False,
    origin: Origin | None = None,
) -> Artefact:
    """Export a model, load the artefact again, and compare it with the model.

    The artefact and its manifest are put in place when everything has passed; until then, and if
    anything fails, nothing of them is at `path`.

    Args:
        model: In evaluation mode; it is left as it is. Of one on a GPU a copy on the CPU is
            exported: artefacts run anywhere.
        format: `"onnx"`, `"pt2"`, `"torchscript"`, `"openvino"`, `"executorch"`, `"aoti"` or
            `"coreml"`.
        path: A file with the suffix of the format, or a folder, which gets `model.onnx` or the
            like. The manifest goes beside the artefact as `manifest.json`.
        input_size: B C H W (B C D H W for volumes) that is traced; None: one image of the size that
            the model was published for.
        dynamic_batch: Leave the batch open; otherwise it is the one of `input_size`. None: open
            where the format can.
        dynamic_size: Leave H and W open, too, and compare at other sizes.
        opset: Version of ONNX's operator set; None: the exporter's own.
        half: Hold the weights in float16.
        preprocess: Take pixels as bytes (uint8) and normalise them in the artefact.
        postprocess: Give probabilities of classes, or the class of every pixel.
        fuse: Re-parameterise first.
        overwrite: Replace an artefact that is already there.
        origin: What the manifest should say of the model's origin.

    Raises:
        BadInput: A value that cannot work, a model in training mode, a target that exists or cannot
            be written.
        MissingExtra: A package of the format is not installed.
        NotExportable: The format cannot do what is asked, the model cannot be converted, or the
            artefact computes something else.
    """
    job = prepare(
        model,
        format,
        path,
        input_size=input_size,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        opset=opset,
        half=half,
        preprocess=preprocess,
        postprocess=postprocess,
        fuse=fuse,
        overwrite=overwrite,
        origin=origin,
    )
    with atomic_output.workplace(job.target.parent, model) as folder:
        found = job.write(folder)
        content = job.describe(
            folder,
            precision=_precision(model, half),
            found=found,
            comparison=_comparison(found),
        )
        return job.publish(folder, content, found.agreement)


@dataclass(frozen=True)
class Job:
    """An export that has been checked as far as it can be before anything is written.

    Attributes:
        model: As it was handed in.
        form: What is converted: the same, fused if that was asked for.
        format: The name of the format.
        kind: What is known of the format.
        origin: Where the model comes from.
        settings: What is asked of the artefact.
        package: Puts a model between the processing that is asked for.
        target: Where the artefact goes.
    """

    model: nn.Module
    form: nn.Module
    format: str
    kind: formats.Format
    origin: Origin
    settings: Settings
    package: Callable[[nn.Module], Any]
    target: Path

    @property
    def exporter(self) -> Any:
        """The module that writes the format."""
        return importlib.import_module(self.kind.module)

    def write(self, folder: Path) -> Check:
        """Write the artefact to `folder`, load it again and compare it with the model."""
        draft = folder / self.target.name
        self.exporter.convert(self.package(self.form), draft, self.settings)
        # With the model as it was handed in, so that fusing is checked along with the rest.
        return check(self.package(self.model), draft, self.kind.runtime, self.settings)

    def describe(
        self,
        folder: Path,
        *,
        precision: str,
        found: Check,
        comparison: dict[str, Any],
        packages: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the manifest of the artefact in `folder`.

        Args:
            folder: Where it was written.
            precision: Of its weights.
            found: What was found out about it.
            comparison: What to say of that.
            packages: What had a part in it beside the exporter's own.
        """
        draft, packaged = folder / self.target.name, self.package(self.model)
        inside = packaged if isinstance(packaged, Packaged) else None
        return {
            "format": self.format,
            "artefact": {**files.describe(draft), **self.exporter.describe(draft)},
            **manifest.describe_model(self.model, self.origin, _is_fused(self.form)),
            "precision": precision,
            "input": manifest.describe_input(
                self.model,
                self.origin,
                self.exporter.INPUT,
                self.settings,
                inside is not None and inside.takes_pixels,
                found.multiple,
            ),
            "outputs": found.outputs,
            "postprocessing": inside.answer if inside else None,
            "comparison": comparison,
            "versions": versions(*self.exporter.versions(), *packages),
        }

    def publish(
        self,
        folder: Path,
        content: dict[str, Any],
        agreement: Agreement | None,
        beside: Sequence[str] = (),
    ) -> Artefact:
        """Put the artefact of `folder` in place, files that go beside it, and its manifest."""
        manifest.write(content, folder / files.NAME)
        atomic_output.publish(folder, self.target, beside)
        return Artefact(self.target, self.target.parent / files.NAME, content, agreement)


def prepare(
    model: nn.Module,
    format: str,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    half: bool = False,
    preprocess: bool = False,
    postprocess: bool = False,
    fuse: bool = True,
    overwrite: bool = False,
    origin: Origin | None = None,
) -> Job:
    """Check all that `export` is asked for; write nothing.

    Args and errors are those of `export`.
    """
    kind = get_format(format)
    origin = origin or Origin()
    if any(module.training for module in model.modules()):
        raise BadInput("the model is in training mode; call model.eval() before exporting it")
    formats.check(
        format,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        preprocess=preprocess,
        opset=opset,
    )
    manifest.check_classes(model, origin)
    model = _on_cpu(model)
    size = _input_size(model, origin.name, input_size)
    open_batch = kind.can("dynamic_batch") if dynamic_batch is None else dynamic_batch
    settings = Settings(size, open_batch, dynamic_size, opset, half, _multiple(origin))
    package = _packaging(model, origin, preprocess, postprocess, len(size) - 2)
    target = atomic_output.target_of(Path(path), kind, overwrite)
    need(f"format {format!r}", importlib.import_module(kind.module).PACKAGES)
    form = model
    if int8_graph.is_converted(model):
        int8_graph.check_export(model, format, settings, fuse)
    elif fuse:
        form = reparameterize(model)
    return Job(model, form, format, kind, origin, settings, package, target)


def convert(
    model: nn.Module, file: Path, *, input_size: tuple[int, ...], dynamic_batch: bool
) -> None:
    """Write a model to `file` in the format of its suffix, unchecked and undescribed."""
    exporter = importlib.import_module(formats.by_file(file.name).module)
    exporter.convert(model, file, Settings(tuple(input_size), dynamic_batch))


def _comparison(found: Check) -> dict[str, Any]:
    if found.agreement is None:
        return {
            "runtime": None,
            "proven": False,
            "why": "nothing on this platform runs the format: it was converted, validated by its "
            "own tools and read again, and its outputs were not compared",
        }
    return {"runtime": found.runtime, **found.agreement.to_dict(), "sizes": found.sizes}


def _packaging(
    model: nn.Module, origin: Origin, preprocess: bool, postprocess: bool, axes: int
) -> Callable[[nn.Module], Any]:
    """Return what puts a model between the processing that is asked for.

    Raises:
        BadInput: What that takes is not known.
    """
    if not (preprocess or postprocess):
        return lambda form: form
    known = manifest.preprocessing_of(model, origin)
    if preprocess and not (known["mean"] and known["std"]):
        raise BadInput("preprocess=True: the model's mean and std are not known; name its origin")
    answer = None
    if postprocess:
        task = manifest.task_of(model, origin)
        answers = {"classification": "softmax", "segmentation": "argmax"}
        if task not in answers:
            raise BadInput(f"postprocess=True: a model for {task} has no classes to answer with")
        answer = answers[task]
    statistics = {"mean": known["mean"], "std": known["std"]} if preprocess else {}
    return lambda form: Packaged(form, **statistics, answer=answer, axes=axes).eval()


def _multiple(origin: Origin) -> int | None:
    """What the sides of the model's input must be a multiple of, where its facts say that."""
    if origin.name is None or registry.is_timm(origin.name):
        return None
    return registry.model_info(origin.name).get("input", {}).get("multiple")


def _input_size(model: nn.Module, name: str | None, given: Sequence[int] | None) -> tuple[int, ...]:
    own = input_of(model, name)["size"]
    lengths = (len(own) + 1,) if own else (4, 5)  # of images, of volumes
    if given is None:
        if own is None:
            raise BadInput("input_size=None: the model's own size is not known; pass (1, 3, H, W)")
        given = (1, *own)
    size = tuple(given)
    numbers = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in size)
    if not numbers or len(size) not in lengths:
        what = {
            4: "four whole numbers of at least 1: B C H W",
            5: "five whole numbers of at least 1: B C D H W",
        }[lengths[0]]
        raise BadInput(f"input_size={size!r} must be {what}")
    return size


def _on_cpu(model: nn.Module) -> nn.Module:
    """Return the model, or a copy if it lies elsewhere."""
    held = itertools.chain(model.parameters(), model.buffers())
    return model if all(x.device.type == "cpu" for x in held) else copy.deepcopy(model).cpu()


def _precision(model: nn.Module, half: bool) -> str:
    return "int8" if int8_graph.is_converted(model) else "float16" if half else "float32"


def _is_fused(model: nn.Module) -> bool:
    return bool(getattr(model, "reparameterized", False))
