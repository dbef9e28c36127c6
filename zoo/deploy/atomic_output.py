"""Write an artefact to a temporary folder, and move it to its target when it is finished."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from zoo.deploy import files
from zoo.deploy.formats import FORMATS, Format, format_of_file
from zoo.errors import BadInput

# Errors of the file system that concern the whole folder, not one file.
_NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip


def resolve_target(path: Path, kind: Format, overwrite: bool) -> Path:
    """Return the path that the artefact is written to.

    Args:
        path: A file with the suffix of the format, or a folder.
        kind: The format.
        overwrite: Existing files may be replaced.

    Raises:
        BadInput: The path has the suffix of another format, or a file exists already.
    """
    path = path.expanduser()
    has_suffix = any(path.name.endswith(other.suffix) for other in FORMATS.values())
    if has_suffix and format_of_file(path.name) is not kind:
        raise BadInput(f"{str(path)!r} must end with {kind.suffix!r}, the suffix of the format")
    is_folder = path.is_dir() and kind.suffix != ".mlpackage"
    target = path if has_suffix and not is_folder else path / f"model{kind.suffix}"
    manifest = target.parent / files.MANIFEST
    reports = [target.parent / name for name in files.REPORTS]
    if not overwrite:
        for existing in (*files.members(target), manifest, *reports):
            if existing.exists():
                raise BadInput(f"{existing} exists; export.overwrite=true replaces it")
    elif manifest.exists() and not target.exists():
        raise BadInput(f"{manifest} belongs to another artefact; choose another folder")
    return target


@contextlib.contextmanager
def temporary_folder(folder: Path, model: nn.Module) -> Iterator[Path]:
    """Create a temporary folder in `folder`, and remove it afterwards.

    Args:
        folder: The folder of the target. It is created if needed, and removed if it stays empty.
        model: Its weights must fit into the free space.

    Raises:
        BadInput: `folder` cannot be written, or has too little space.
    """
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_free_space(folder, model)
            temporary = tempfile.TemporaryDirectory(prefix=".partial-", dir=folder)
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror or error}") from error
        with temporary as name, _report_full_disk(folder):
            yield Path(name)
    finally:
        for parent in created:
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_free_space(folder: Path, model: nn.Module) -> None:
    """Raise `BadInput` if the weights of `model` do not fit into the free space of `folder`."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"cannot write to {folder}: the weights take {needed / 2**20:.1f} MiB, only "
            f"{free / 2**20:.1f} MiB are free"
        )


@contextlib.contextmanager
def _report_full_disk(folder: Path) -> Iterator[None]:
    """Raise `BadInput` for an error that was caused by a full or read-only disk."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in _NOT_WRITABLE:
                raise BadInput(f"cannot write to {folder}: {cause.strerror}") from error
            cause = cause.__cause__ or cause.__context__
        raise


def publish(folder: Path, target: Path, extra: Sequence[str] = ()) -> None:
    """Move an artefact to its target by renaming, its manifest last.

    A process that is killed in between leaves no manifest, and never a mixture of old and new
    files: the old ones are moved away first, starting with the file that refers to the weights.

    Args:
        folder: The temporary folder that contains all files.
        target: Path of the artefact.
        extra: Names of further files in `folder` to move next to the artefact. Reports of an older
            artefact are deleted.
    """
    manifest = target.parent / files.MANIFEST
    for old in (manifest, *(target.parent / name for name in files.REPORTS)):
        old.unlink(missing_ok=True)
    members = files.members(target)
    if len(members) > 1 or target.is_dir():  # a single file is replaced in one step
        for member in members:
            if member.exists():
                os.replace(member, folder / f"replaced-{member.name}")
    for member in reversed(members):  # weights before the file that refers to them
        os.replace(folder / member.name, member)
    for name in (*extra, files.MANIFEST):
        os.replace(folder / name, target.parent / name)
