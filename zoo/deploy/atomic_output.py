"""Write an artefact to a temporary folder, and move it to its target when it is finished."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from zoo.deploy import files, publishing
from zoo.deploy.formats import FORMATS, Format, format_of_file
from zoo.errors import BadInput

# Errors of the file system that concern the whole folder, not one file.
_NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip
FULL = 1 << 16  # bytes; with less free space, an error is blamed on the disk


def resolve_target(path: Path, kind: Format, overwrite: bool) -> Path:
    """Return the path that the artefact is written to.

    Args:
        path: A file with the suffix of the format, or a folder.
        kind: The format.
        overwrite: Existing files may be replaced.

    Raises:
        BadInput: The path has the suffix of another format, or a file exists already.
    """
    path = Path(os.path.expanduser(path))  # unlike Path.expanduser, it never raises an error
    has_suffix = any(path.name.endswith(other.suffix) for other in FORMATS.values())
    if has_suffix and format_of_file(path.name) is not kind:
        raise BadInput(f"{str(path)!r} must end with {kind.suffix!r}, the suffix of the format")
    is_folder = path.is_dir() and kind.suffix != ".mlpackage"
    target = path if has_suffix and not is_folder else path / f"model{kind.suffix}"
    check_free_name(target, overwrite)
    return target


def check_free_name(target: Path, overwrite: bool) -> None:
    """Raise `BadInput` if writing an artefact to `target` would destroy something.

    Args:
        target: Path of the artefact.
        overwrite: Existing files may be replaced, unless they belong to another artefact.
    """
    manifest = target.parent / files.MANIFEST
    reports = [target.parent / name for name in publishing.REPORTS]
    if not overwrite:
        for existing in (*files.members(target), manifest, *reports):
            if existing.exists():
                raise BadInput(f"{existing} exists; export.overwrite=true replaces it")
    elif manifest.exists() and not target.exists():
        raise BadInput(f"{manifest} belongs to another artefact; choose another folder")


@contextlib.contextmanager
def temporary_folder(target: Path, model: nn.Module, overwrite: bool) -> Iterator[Path]:
    """Create a temporary folder next to `target`, and remove it afterwards.

    No other export can write to the folder of `target` until then. Temporary folders of killed
    exports are removed.

    Args:
        target: Path of the artefact. Its folder is created if needed, and removed if it stays
            empty.
        model: Its weights must fit into the free space.
        overwrite: As for `check_free_name`, which is called again under the lock.

    Raises:
        BadInput: The folder cannot be written, has too little space, or another export is writing
            to it.
    """
    folder = target.parent
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with _removed_if_empty(created), contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_free_space(folder, model)
            stack.enter_context(publishing.locked(folder))
            publishing.finish(folder)
            publishing.sweep(folder)
            check_free_name(target, overwrite)
            name = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=publishing.PARTIAL, dir=folder)
            )
        except OSError as error:
            raise BadInput(f"cannot write to {folder}: {error.strerror or error}") from error
        with _report_full_disk(folder):
            yield Path(name)


@contextlib.contextmanager
def _removed_if_empty(folders: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


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
                raise BadInput(
                    f"cannot write to {folder}: {cause.strerror}; free some space, or choose "
                    "another folder"
                ) from error
            cause = cause.__cause__ or cause.__context__
        # Some runtimes hide the error of the system, or leave a short file that cannot be loaded.
        if shutil.disk_usage(folder).free < FULL:
            raise BadInput(
                f"cannot write to {folder}: the disk is full; free some space, or choose another "
                "folder"
            ) from error
        raise


def publish(draft: Path, target: Path, extra: Sequence[str] = (), *, overwrite: bool) -> None:
    """Move an artefact to its target, with its manifest.

    A process that is killed in between leaves the old artefact or the new one, see `publishing`.
    Reports of an older artefact are deleted.

    Args:
        draft: The temporary folder that contains all files.
        target: Path of the artefact.
        extra: Names of further files in `draft` to move next to the artefact.
        overwrite: As for `check_free_name`, which is called once more.
    """
    check_free_name(target, overwrite)
    members = [member.name for member in files.members(target)]
    # Weights before the file that refers to them.
    names = [*reversed(members), *extra, files.MANIFEST]
    publishing.publish(draft, target.parent, names)
