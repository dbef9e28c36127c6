"""Records of measurements on disk: JSON lines as they come, mirrored as CSV.

A sweep may be killed at any moment, in the middle of a line too. So a record is written by a single
call and is on disk when `add` returns, an unfinished last line is recognised and dropped, and
`case_key` tells which measurements a file already holds.
"""

import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadInput

Record = dict[str, Any]

JSON_NAME = "results.jsonl"

# What two measurements have in common if one of them makes the other superfluous.
_CASE = ("model", "args", "input_size", "fused", "runtime", "asked", "machine", "versions")

_NEEDED = ("model", "input_size", "runtime", "p50_ms")
_TEXTS = ("model", "runtime", "runtime_version", "dtype", "layout", "device", "date", "command")
_NUMBERS = ("params", "macs", "flops", "activations", "intensity", "n", "spread", "threads")
_TABLES = ("args", "asked", "machine", "versions")


_LAYER = {
    **dict.fromkeys(("name", "type", "bound"), (str,)),
    **dict.fromkeys(("ms", "macs", "params", "bytes"), (int, float)),
}


class Results:
    """A file of records, a line each as they come, and the same as CSV beside it.

    Records of earlier runs in that file stay; every record says when and by what it was made.

    Attributes:
        path: The JSON lines.
        earlier: The records that were there before.
        dropped: Whether an unfinished last line, left by a run that was killed, was cut off.
    """

    def __init__(self, out: Path) -> None:
        """Open or make the file.

        Args:
            out: A folder, in which it is `results.jsonl`; or the file itself, `<name>.jsonl`.

        Raises:
            BadInput: It cannot be written, or holds something else than records.
        """
        self.path = out if out.suffix == ".jsonl" else out / JSON_NAME
        self._made: list[Path] = []
        folder = self.path.parent
        try:
            self._made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self.path, self.csv):
                existed = path.exists()
                path.open("a").close()
                if not existed:
                    path.unlink()
        except OSError as error:
            self.discard()
            raise BadInput(
                f"profile.out={str(out)!r} cannot be written: {error.strerror or error}"
            ) from error
        self.earlier = read(self.path) if self.path.exists() else []
        self.dropped = self.path.exists() and self._mend()

    @property
    def csv(self) -> Path:
        """The CSV that mirrors the records."""
        return self.path.with_suffix(".csv")

    def add(self, record: Record) -> None:
        """Append one record; when this returns, it is on disk."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write all records of the file as CSV; a folder that got none disappears again."""
        if self.path.exists():
            write_csv(read(self.path), self.csv)
        else:
            self.discard()

    def discard(self) -> None:
        """Remove the folders that were made and stayed empty."""
        for path in self._made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _mend(self) -> bool:
        """Let the file end with a whole line; say whether an unfinished one had to go."""
        content = self.path.read_bytes()
        tail = content[content.rfind(b"\n") + 1 :]
        torn = unfinished(self.path)
        if torn:
            os.truncate(self.path, len(content) - len(tail))
        elif tail:
            with self.path.open("ab") as file:
                file.write(b"\n")
        return torn


def load(source: Path) -> list[Record]:
    """Read the records of a file, or of the folder that `benchmark.py` made.

    Raises:
        BadInput: There is none, it holds something else, or no records at all.
    """
    path = source / JSON_NAME if source.is_dir() else source
    if not path.is_file():
        raise BadInput(f"no file {path}; benchmark.py says where it puts its records")
    if unfinished(path):
        print(f"warning: {path}: the last line is unfinished and left out", file=sys.stderr)
    records = read(path)
    if not records:
        raise BadInput(f"{path} holds no records")
    return records


def read(path: Path) -> list[Record]:
    """Read records, a JSON object a line; an unfinished last line is left out.

    Raises:
        BadInput: The file cannot be read, or a line is no record; the message says which and why.
    """
    lines = _lines(path)
    if unfinished(path):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parsed(line)
        wrong = "no JSON" if record is None else _complaint(record)
        if wrong:
            raise BadInput(
                f"{path}, line {number} is not a record of a measurement ({wrong}); move it away"
            )
        records.append(record)
    return records


def unfinished(path: Path) -> bool:
    """Say whether the last line was cut off while it was written.

    Raises:
        BadInput: The file cannot be read.
    """
    last = _lines(path)[-1]
    return last.startswith("{") and _parsed(last) is None


def case_key(record: Record) -> str:
    """Return what identifies a measurement: case, settings, machine and versions."""
    return json.dumps([record.get(key) for key in _CASE], sort_keys=True)


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write records as CSV, what is nested under dotted names; the file is replaced as a whole.

    Times of layers, a table of their own in each record, stand in the JSON lines alone.
    """
    rows = [flatten({k: v for k, v in record.items() if k != "layers"}) for record in records]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


def flatten(record: Record, prefix: str = "") -> Record:
    """Return `record` without nesting: `{"machine": {"cpu": ...}}` becomes `machine.cpu`."""
    flat: Record = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat[prefix + key] = "x".join(map(str, value))
        else:
            flat[prefix + key] = value
    return flat


def _lines(path: Path) -> list[str]:
    """The lines of a file; what follows the last line feed is the last of them, mostly empty."""
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        # A line that was cut inside of a character is an unfinished one.
        if error.end == len(error.object) and error.reason == "unexpected end of data":
            return error.object[: error.start].decode("utf-8").split("\n")
        raise BadInput(f"{path} is no text and holds no records") from error


def _parsed(line: str) -> Any:
    """What a line says; None where it is no JSON (which knows no NaN)."""
    try:
        return json.loads(line, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is Python's, not JSON's")


def _complaint(record: Any) -> str:
    """Say what keeps a JSON value from being a record; nothing if it is one."""
    if not isinstance(record, dict):
        return "no JSON object"
    for key in _NEEDED:
        if record.get(key) is None:
            return f"no {key}"
    for key, value in record.items():
        number = key.endswith(("_ms", "_bytes", "_j")) or key in _NUMBERS
        if value is None:
            continue
        if number and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"{key}={str(value)[:40]!r} is no number"
        if number and not math.isfinite(value):
            return f"{key} is no finite number"
        if key in _TEXTS and not isinstance(value, str):
            return f"{key} is no text"
        if key in _TABLES and not isinstance(value, dict):
            return f"{key} is no table"
    size = record["input_size"]
    if not isinstance(size, list) or len(size) < 3 or not all(type(n) is int for n in size):
        return f"input_size={str(size)[:40]} is no shape"
    if record.get("fused") not in (None, True, False):
        return "fused is neither true nor false"
    return _complaint_of_layers(record.get("layers") or {"layers": []})


def _complaint_of_layers(layers: Any) -> str:
    rows = layers.get("layers") if isinstance(layers, dict) else None
    if not isinstance(rows, list):
        return "layers is no table"
    for row in rows:
        if not isinstance(row, dict) or any(
            type(row.get(key)) not in kinds for key, kinds in _LAYER.items()
        ):
            return f"a layer needs {', '.join(_LAYER)}"
    return ""
