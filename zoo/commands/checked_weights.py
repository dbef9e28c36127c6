"""A record of published weights that were fetched and loaded on this machine."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

from zoo.cache import cache_folder
from zoo.errors import BadInput


def path() -> Path:
    """Return the file of the record, beside the downloaded files."""
    return cache_folder() / "zoo-checked.json"


def read() -> dict[str, dict[str, Any]]:
    """Return what is known of each address: `sha256`, `bytes` and `date`; damaged records are left
    out."""
    try:
        content = json.loads(path().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {address: entry for address, entry in entries if _is_valid(entry)}


def _is_valid(entry: Any) -> bool:
    types = {"sha256": str, "bytes": int, "date": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in types.items())


def record(address: str, *, sha256: str, size: int) -> None:
    """Add a file that was fetched and fits.

    Raises:
        BadInput: The record cannot be written.
    """
    date = datetime.date.today().isoformat()
    content = read() | {address: {"sha256": sha256, "bytes": size, "date": date}}
    file = path()
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(
            f"{file} cannot be written ({error.strerror}); set TORCH_HOME to another folder"
        ) from error
