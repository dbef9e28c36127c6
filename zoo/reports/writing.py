"""Write files all or nothing: next to their place first, then renamed."""

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from zoo.errors import BadInput

_OLD_S = 3600  # seconds after which a draft belongs to no running process


def replace_files(texts: Mapping[Path, str]) -> None:
    """Write text files; all of them get their names only after all are complete.

    Args:
        texts: The text of each file, by path. The folders exist.

    Raises:
        BadInput: A file cannot be written; those that existed stay as they were.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            target = Path(os.path.realpath(path))
            if target.is_dir():
                raise BadInput(f"{path} cannot be written: it is a folder; choose another one")
            _draft(target, text.encode("utf-8", "replace"), drafts)
        for target in list(drafts):
            drafts[target].replace(target)
            del drafts[target]
    except OSError as error:
        raise BadInput(no_space(error, path)) from error
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()


def _draft(path: Path, content: bytes, drafts: dict[Path, Path]) -> None:
    """Write a file next to `path`, and note it in `drafts` as soon as it exists."""
    name = f".{path.name[:100]}"
    for old in path.parent.glob(f"{glob.escape(name)}.*.partial"):
        with contextlib.suppress(OSError):  # of a process that was killed
            if time.time() - old.stat().st_mtime > _OLD_S:
                old.unlink()
    draft = path.parent / f"{name}.{secrets.token_hex(4)}.partial"
    with draft.open("xb") as file:
        drafts[path] = draft
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def no_space(error: OSError, path: Path) -> str:
    """Return the message for a file that cannot be written, with the disk that it is on."""
    folder = path.absolute().parent
    disk = next(place for place in (folder, *folder.parents) if os.path.ismount(place))
    return (
        f"{path} cannot be written: {error.strerror or error} (disk {disk}); free some space there "
        "or choose another folder; what was written before is kept"
    )
