"""Artefacts and manifests as files: names, checksums, reading. Does not import torch."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from zoo.deploy import publishing
from zoo.errors import BadInput

MANIFEST = "manifest.json"
SCHEMA = "zoo.manifest/1"


def sha256(file: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe(artefact: Path) -> dict[str, Any]:
    """Return name, sha256 and bytes of an artefact, and the sha256 of each of its further files.

    The sha256 of a folder is that of its list of files: lines `<sha256>  <path>`, sorted by path.
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
    """Return the files of an artefact: the artefact itself and, for OpenVINO, its weights."""
    weights = artefact.with_suffix(".bin")
    return [artefact, weights] if artefact.suffix == ".xml" else [artefact]


def _files(artefact: Path) -> list[Path]:
    if artefact.is_dir():
        return sorted(file for file in artefact.rglob("*") if file.is_file())
    return [file for file in members(artefact) if file.is_file()]


def read(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """Return the path of an artefact and its manifest, after comparing their checksums.

    Args:
        path: The artefact, its manifest, or the folder of both.

    Raises:
        BadInput: A file is missing or unreadable, or the manifest belongs to another artefact.
    """
    given = Path(path).expanduser()
    if not given.exists():
        raise BadInput(f"artefact {str(path)!r} does not exist")
    if given.is_dir():
        publishing.recover(given)
    is_folder = given.is_dir() and (given / MANIFEST).exists()
    folder = given if is_folder else given.parent
    publishing.recover(folder)
    file = folder / MANIFEST
    content = _read_manifest(file)
    stated = content["artefact"]
    artefact = folder / stated["file"]
    if not is_folder and given.name not in (MANIFEST, artefact.name):
        raise BadInput(f"{file} describes {artefact.name}, not {given.name}; export again")
    if not artefact.exists():
        raise BadInput(f"{file} describes {artefact.name}, which does not exist; export again")
    found = describe(artefact)
    for name in (artefact.name, *stated.get("parts", {})):
        expected, actual = (
            entry["sha256"] if name == artefact.name else entry.get("parts", {}).get(name)
            for entry in (stated, found)
        )
        if expected != actual:
            raise BadInput(
                f"{file} does not match {folder / name}: the file's sha256 is "
                f"{str(actual)[:12]}..., the manifest expects {str(expected)[:12]}...; export again"
            )
    return artefact, content


def _read_manifest(file: Path) -> dict[str, Any]:
    """Read a manifest and check its schema and required entries."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"the artefact has no manifest: {file} does not exist; export again"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {file} as a manifest: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise BadInput(f"{file} is not a manifest: its schema is {schema!r}, not {SCHEMA!r}")
    required = {"artefact": ("file", "sha256"), "input": ("shape", "size"), "comparison": ()}
    for part, keys in required.items():
        missing = [k for k in keys if k not in content.get(part, {})] if part in content else [part]
        if missing:
            raise BadInput(f"{file} lacks {part}: {', '.join(missing)}; export again")
    return content


def stated_fused(artefact: Path) -> bool | None:
    """Return whether the model was fused, according to the manifest; None without a manifest."""
    try:
        content = json.loads((artefact.parent / MANIFEST).read_text(encoding="utf-8"))
        return content["model"]["fused"] if content["artefact"]["file"] == artefact.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
