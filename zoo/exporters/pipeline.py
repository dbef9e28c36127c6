"""Model -> artefact: fuse, convert, load it again, compare, describe. Only what passed is kept."""

import contextlib
import difflib
import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo import runtimes
from zoo.errors import BadInput, NotExportable
from zoo.exporters import manifest
from zoo.exporters.manifest import Origin
from zoo.exporters.verify import Agreement, agree
from zoo.inputs import own_input
from zoo.profiling.machine import versions

OPEN_BATCHES = (1, 2, 3)  # compared where the batch is open; one of them is the traced one


@dataclass(frozen=True)
class Format:
    """A kind of artefact: who writes it, how its file ends, what runs it."""

    module: str
    suffix: str
    runtime: str


FORMATS = {
    "onnx": Format("zoo.exporters.onnx", ".onnx", "onnxruntime"),
    "executorch": Format("zoo.exporters.executorch", ".pte", "executorch"),
}


@dataclass(frozen=True)
class Artefact:
    """A finished export.

    Attributes:
        path: The artefact.
        manifest_path: The manifest beside it.
        manifest: Its content.
        agreement: How it compares with the model.
    """

    path: Path
    manifest_path: Path
    manifest: dict[str, Any]
    agreement: Agreement


def export(
    model: nn.Module,
    format: str,
    path: str | os.PathLike[str],
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    fuse: bool = True,
    overwrite: bool = False,
    origin: Origin | None = None,
) -> Artefact:
    """Export a model, load the artefact again, and compare it with the model.

    The artefact and its manifest are put in place when everything has passed; until then, and if
    anything fails, nothing of them is at `path`.

    Args:
        model: In evaluation mode; it is left as it is.
        format: `"onnx"`.
        path: A file with the suffix of the format, or a folder, which gets `model.onnx`. The
            manifest goes beside the artefact as `manifest.json`.
        input_size: B C H W (B C D H W for volumes) that is traced; None: one image of the size that
            the model was published for.
        dynamic_batch: Leave the batch open; otherwise it is the one of `input_size`.
        opset: Version of ONNX's operator set; None: the exporter's own.
        fuse: Re-parameterise first.
        overwrite: Replace an artefact that is already there.
        origin: What the manifest should say of the model's origin.

    Raises:
        BadInput: A value that cannot work, a model in training mode, a target that exists or cannot
            be written.
        MissingExtra: A package of the format is not installed.
        NotExportable: The model cannot be converted, or the artefact computes something else.
    """
    kind = get_format(format)
    origin = origin or Origin()
    if any(module.training for module in model.modules()):
        raise BadInput("the model is in training mode; call model.eval() before exporting it")
    manifest.check_classes(model, origin)
    size = _input_size(model, origin.name, input_size)
    target = _target(Path(path), kind, overwrite)
    exporter = importlib.import_module(kind.module)
    runtimes.need(f"format {format!r}", exporter.PACKAGES)
    with _workplace(target.parent) as place:
        draft = place / target.name
        form = _fused(model) if fuse else model
        exporter.convert(
            form,
            draft,
            input_size=size,
            dynamic_batch=dynamic_batch,
            opset=opset,
        )
        agreement = _agreement(model, draft, kind, size, dynamic_batch)
        content = {
            "format": format,
            "artefact": {
                "file": target.name,
                "sha256": manifest.sha256(draft),
                "bytes": draft.stat().st_size,
                **exporter.describe(draft),
            },
            **manifest.describe_model(model, origin, _is_fused(form)),
            "input": manifest.describe_input(model, origin, exporter.INPUT, size, dynamic_batch),
            "outputs": exporter.outputs(draft),
            "comparison": {"runtime": kind.runtime, **agreement.to_dict()},
            "versions": versions(*exporter.versions()),
        }
        manifest.write(content, place / manifest.NAME)
        _publish(place, target)
    return Artefact(target, target.parent / manifest.NAME, content, agreement)


def convert(
    model: nn.Module, file: Path, *, input_size: tuple[int, ...], dynamic_batch: bool
) -> None:
    """Write a model to `file` in the format of its suffix, unchecked and undescribed."""
    kind = next(kind for kind in FORMATS.values() if kind.suffix == file.suffix)
    exporter = importlib.import_module(kind.module)
    exporter.convert(model, file, input_size=input_size, dynamic_batch=dynamic_batch)


def get_format(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        BadInput: There is none; the message names the nearest.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(str(name).lower(), FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(FORMATS)}"
        raise BadInput(f"no format named {name!r}; {hint}")
    return FORMATS[name]


def _input_size(model: nn.Module, name: str | None, given: Sequence[int] | None) -> tuple[int, ...]:
    own = own_input(model, name)["size"]
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


def _target(path: Path, kind: Format, overwrite: bool) -> Path:
    """Return the path of the artefact, which is free or may be replaced."""
    path = path.expanduser()
    known = {other.suffix for other in FORMATS.values()}
    if path.suffix in known - {kind.suffix}:
        raise BadInput(f"{str(path)!r} does not end like the format, in {kind.suffix!r}")
    is_file = path.suffix == kind.suffix and not path.is_dir()
    target = path if is_file else path / f"model{kind.suffix}"
    beside = target.parent / manifest.NAME
    if not overwrite:
        for taken in (target, beside):
            if taken.exists():
                raise BadInput(f"{taken} exists; export.overwrite=true replaces it")
    elif beside.exists() and not target.exists():
        raise BadInput(f"{beside} belongs to another artefact; choose another folder")
    return target


def _fused(model: nn.Module) -> nn.Module:
    from zoo.reparam import reparameterize

    return reparameterize(model)


def _is_fused(model: nn.Module) -> bool:
    return bool(getattr(model, "reparameterized", False))


def _agreement(
    model: nn.Module, draft: Path, kind: Format, size: tuple[int, ...], dynamic_batch: bool
) -> Agreement:
    """Compare with the model as it was handed in, so that fusing is checked along with the rest."""
    reference = runtimes.load(model, "eager")
    try:
        artefact = runtimes.load(draft, kind.runtime)
        sizes = {size[0]} | (set(OPEN_BATCHES) if dynamic_batch else set())
        return agree(reference, artefact, size[1:], sorted(sizes))
    except NotExportable:
        raise
    except Exception as error:  # the target's runtime refuses the artefact
        raise NotExportable(
            f"the artefact does not run in {kind.runtime}: {runtimes.first_line(error)}"
        ) from error


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder to work in beside the target; it goes, and so do folders that stayed empty."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(prefix=".partial-", dir=folder)
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror or error}") from error
        with place as name:
            yield Path(name)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _publish(place: Path, target: Path) -> None:
    """Put the artefact in place, then its manifest: a manifest never stands beside an older one."""
    beside = target.parent / manifest.NAME
    beside.unlink(missing_ok=True)
    os.replace(place / target.name, target)
    os.replace(place / manifest.NAME, beside)
