"""Where an artefact is written: beside its target, and under its name only when it is finished."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from zoo.deploy import files
from zoo.deploy.formats import FORMATS, Format, by_file
from zoo.errors import BadInput


def target_of(path: Path, kind: Format, overwrite: bool) -> Path:
    """Return the path of the artefact, which is free or may be replaced.

    Raises:
        BadInput: It is taken, or its name is that of another format.
    """
    path = path.expanduser()
    known = any(path.name.endswith(other.suffix) for other in FORMATS.values())
    if known and by_file(path.name) is not kind:
        raise BadInput(f"{str(path)!r} does not end like the format, in {kind.suffix!r}")
    is_folder = path.is_dir() and kind.suffix != ".mlpackage"
    target = path if known and not is_folder else path / f"model{kind.suffix}"
    beside = target.parent / files.NAME
    reports = [target.parent / name for name in files.REPORTS]
    if not overwrite:
        for taken in (*files.members(target), beside, *reports):
            if taken.exists():
                raise BadInput(f"{taken} exists; export.overwrite=true replaces it")
    elif beside.exists() and not target.exists():
        raise BadInput(f"{beside} belongs to another artefact; choose another folder")
    return target


@contextlib.contextmanager
def workplace(folder: Path, model: nn.Module) -> Iterator[Path]:
    """A folder to work in beside the target; it goes, and so do folders that stayed empty.

    Raises:
        BadInput: The folder cannot be written, or has no room for the weights of `model`.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_room(folder, model)
            place = tempfile.TemporaryDirectory(prefix=".partial-", dir=folder)
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror or error}") from error
        with place as name, written_to(folder):
            yield Path(name)
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_room(folder: Path, model: nn.Module) -> None:
    """Raise `BadInput` unless the weights of `model` fit in what is free."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"cannot write to {folder}: {free / 2**20:.1f} MiB are free, the weights take "
            f"{needed / 2**20:.1f} MiB"
        )


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Say where it was that could not be written, however deep an exporter hides that."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise BadInput(f"cannot write to {folder}: {cause.strerror}") from error
            cause = cause.__cause__ or cause.__context__
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def publish(place: Path, target: Path, beside: Sequence[str] = ()) -> None:
    """Put the artefact in place, then its manifest, by renaming alone.

    Whoever is killed in between leaves no manifest, and never one file of an older artefact beside
    one of this: what is to be replaced is moved away first, what names the weights before them.

    Args:
        place: The folder that all was written to.
        target: Where the artefact goes.
        beside: Further files of `place` that go beside it; reports of an older artefact go.
    """
    manifest = target.parent / files.NAME
    for old in (manifest, *(target.parent / name for name in files.REPORTS)):
        old.unlink(missing_ok=True)
    members = files.members(target)
    if len(members) > 1 or target.is_dir():  # a single file is replaced at once
        for member in members:
            if member.exists():
                os.replace(member, place / f"replaced-{member.name}")
    for member in reversed(members):  # weights first: what names them stands last
        os.replace(place / member.name, member)
    for name in (*beside, files.NAME):
        os.replace(place / name, target.parent / name)
