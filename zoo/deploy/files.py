"""Artefacts and manifests as files: names, checksums, reading. Does not import torch."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from zoo.deploy import publishing
from zoo.errors import BadInput, first_line

MANIFEST = "manifest.json"


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


def note_temperature(folder: Path, temperature: float) -> None:
    """Add the temperature that `zoo predict` divides the logits by to the manifest of a folder.

    The artefact itself does not change.
    """
    path = folder / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**content, "temperature": temperature}, indent=2, ensure_ascii=False) + "\n"
    draft = folder / f".{MANIFEST}.part"
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


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
        BadInput: A file is missing or unreadable, the manifest does not follow its schema, or it
            belongs to another artefact.
    """
    if not isinstance(path, str | os.PathLike):
        raise BadInput(f"artefact {path!r} is no path; give a file or a folder")
    given = Path(os.path.expanduser(path))  # unlike Path.expanduser, it never raises an error
    if not os.path.exists(given):
        raise BadInput(f"artefact {str(path)!r} does not exist")
    if given.is_dir():
        publishing.recover(given)
    is_folder = given.is_dir() and (given / MANIFEST).exists()
    folder = given if is_folder else given.parent
    publishing.recover(folder)
    file = folder / MANIFEST
    content = _read_manifest(file, given)
    stated = content["artefact"]
    artefact = folder / stated["file"]
    if not is_folder and given.name not in (MANIFEST, artefact.name):
        raise BadInput(f"{file} describes {artefact.name}, not {given.name}; export again")
    if not (artefact.is_file() or artefact.is_dir()):
        raise BadInput(f"{file} describes {artefact.name}, which does not exist; export again")
    found = describe(artefact)
    parts, actual = stated.get("parts", {}), found.get("parts", {})
    for name in sorted({*parts, *actual}):
        _compare(file, name, parts.get(name), actual.get(name))
    _compare(file, artefact.name, stated["sha256"], found["sha256"])
    if stated["bytes"] != found["bytes"]:
        raise BadInput(
            f"{file} says artefact.bytes: {stated['bytes']}, but it has {found['bytes']}; export "
            "again"
        )
    return artefact, content


def _compare(manifest: Path, name: str, expected: str | None, actual: str | None) -> None:
    """Raise `BadInput` unless the checksum of a file is the expected one."""
    if expected == actual:
        return
    has = "the file does not exist" if actual is None else f"the file's sha256 is {actual[:12]}..."
    says = "does not name it" if expected is None else f"expects {expected[:12]}..."
    raise BadInput(
        f"{manifest} does not match {manifest.parent / name}: {has}, the manifest {says}; export "
        "again"
    )


def _read_manifest(file: Path, given: Path) -> dict[str, Any]:
    """Read a manifest and check it against its schema.

    Args:
        file: The manifest.
        given: What the user gave, for messages.
    """
    if not file.is_file():
        where = given if given.is_dir() else file.parent
        raise BadInput(f"{given} has no manifest: {where / MANIFEST} does not exist; export again")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"cannot read {file} as a manifest: {first_line(error)}") from error
    from zoo.deploy import schema  # imports Pillow: only when a manifest is read

    try:
        return schema.check(content)
    except BadInput as error:
        raise BadInput(f"{file} {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def stated_fused(artefact: Path) -> bool | None:
    """Return whether the model was fused, according to the manifest; None without a manifest."""
    try:
        content = json.loads((artefact.parent / MANIFEST).read_text(encoding="utf-8"))
        is_its_own = content["artefact"]["file"] == artefact.name
        fused = content["model"]["fused"] if is_its_own else None
        return fused if isinstance(fused, bool) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
