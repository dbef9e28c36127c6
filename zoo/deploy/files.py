"""An artefact and its manifest as files: names, checksums, reading. Imports no torch."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from zoo.errors import BadInput

NAME = "manifest.json"
REPORTS = ("quantization.json", "sensitivity.json", "sensitivity.csv")  # beside it, of int8
SCHEMA = "zoo.manifest/1"


def sha256(file: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe(artefact: Path) -> dict[str, Any]:
    """Return name, sha256 and bytes of an artefact, and the sha256 of each file that belongs to it.

    The sha256 of a folder is that of the lines `<sha256>  <path>` of its files, by path.
    """
    parts = {str(file.relative_to(artefact.parent)): sha256(file) for file in _files(artefact)}
    own = parts.pop(artefact.name, None)
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(parts.items()))
    size = sum(file.stat().st_size for file in _files(artefact))
    found = {
        "file": artefact.name,
        "sha256": own or hashlib.sha256(lines.encode()).hexdigest(),
        "bytes": size,
    }
    return found | ({"parts": parts} if parts else {})


def members(artefact: Path) -> list[Path]:
    """Return what has to be moved with an artefact: itself and, of OpenVINO, the weights."""
    weights = artefact.with_suffix(".bin")
    return [artefact, weights] if artefact.suffix == ".xml" else [artefact]


def _files(artefact: Path) -> list[Path]:
    if artefact.is_dir():
        return sorted(file for file in artefact.rglob("*") if file.is_file())
    return [file for file in members(artefact) if file.is_file()]


def read(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return the artefact that `path` stands for, and its manifest, after checking that they fit.

    Args:
        path: The artefact, its manifest, or the folder of both.

    Raises:
        BadInput: One of them is missing, cannot be read, or is not the other's.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise BadInput(f"no artefact at {str(path)!r}")
    of_folder = given.is_dir() and (given / NAME).exists()
    folder = given if of_folder else given.parent
    file = folder / NAME
    content = _content(file)
    stated = content["artefact"]
    artefact = folder / stated["file"]
    if not of_folder and given.name not in (NAME, artefact.name):
        raise BadInput(f"{file} describes {artefact.name}, not {given.name}")
    if not artefact.exists():
        raise BadInput(f"{file} describes {artefact.name}, which is not there")
    found = describe(artefact)
    for name in (artefact.name, *stated.get("parts", {})):
        both = [e["sha256"] if name == artefact.name else e.get("parts", {}).get(name)
                for e in (stated, found)]  # fmt: skip
        if both[0] != both[1]:
            raise BadInput(
                f"{file} does not fit {folder / name}: its sha256 is {str(both[1])[:12]}..., the "
                f"manifest states {str(both[0])[:12]}...; export again"
            )
    return artefact, content


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no {NAME} beside the artefact: {file} is not there") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read as a manifest: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise BadInput(f"{file} is no manifest: its schema is {schema!r}, not {SCHEMA!r}")
    needed = {"artefact": ("file", "sha256"), "input": ("shape", "size"), "comparison": ()}
    for part, keys in needed.items():
        missing = [k for k in keys if k not in content.get(part, {})] if part in content else [part]
        if missing:
            raise BadInput(f"{file} lacks {part}: {', '.join(missing)}; export again")
    return content


def stated_fused(artefact: Path) -> bool | None:
    """Return whether the manifest says that the model was fused; None without a manifest of it."""
    try:
        content = json.loads((artefact.parent / NAME).read_text(encoding="utf-8"))
        return content["model"]["fused"] if content["artefact"]["file"] == artefact.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
