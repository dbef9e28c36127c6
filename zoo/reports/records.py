"""Records of measurements on disk: a JSON Lines file and a CSV copy of it.

A sweep may be killed at any moment, even while it writes a line. Therefore a record is on disk when
`add` returns, an incomplete last line is detected and removed, and `case_key` identifies the
measurements that a file already contains.
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

# Measurements that agree in all of these keys are repetitions of each other.
_CASE = ("model", "args", "input_size", "fused", "runtime", "asked", "machine", "versions")

_REQUIRED = ("model", "input_size", "runtime", "p50_ms")
_TEXTS = ("model", "runtime", "runtime_version", "dtype", "layout", "device", "date", "command")
_NUMBERS = ("params", "macs", "flops", "activations", "intensity", "n", "spread", "threads")
_OBJECTS = ("args", "asked", "machine", "versions")


_LAYER = {
    **dict.fromkeys(("name", "type", "bound"), (str,)),
    **dict.fromkeys(("ms", "macs", "params", "bytes"), (int, float)),
}


class Results:
    """A file of records, and a CSV copy of it in the same folder.

    New records are appended; records of earlier runs are kept.

    Attributes:
        path: Path of the JSON Lines file.
        earlier: The records that the file contained when it was opened.
        dropped: Whether an incomplete last line, left by a killed run, was removed.
    """

    def __init__(self, out: Path) -> None:
        """Open the file, creating its folder if necessary.

        Args:
            out: A folder, which contains `results.jsonl`, or the path of a file `<name>.jsonl`.

        Raises:
            BadInput: The file cannot be written, or contains something other than records.
        """
        self.path = out if out.suffix == ".jsonl" else out / JSON_NAME
        self._new_folders: list[Path] = []
        folder = self.path.parent
        try:
            self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
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
        self.dropped = self.path.exists() and self._complete_last_line()

    @property
    def csv(self) -> Path:
        """Path of the CSV file."""
        return self.path.with_suffix(".csv")

    def add(self, record: Record) -> None:
        """Append a record and wait until it is on disk."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write the CSV file, or remove the new folders if no record was added."""
        if self.path.exists():
            write_csv(read(self.path), self.csv)
        else:
            self.discard()

    def discard(self) -> None:
        """Remove the folders that were created and are still empty."""
        for path in self._new_folders:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _complete_last_line(self) -> bool:
        """End the file with a complete line; return whether an incomplete one was removed."""
        content = self.path.read_bytes()
        tail = content[content.rfind(b"\n") + 1 :]
        incomplete = last_line_incomplete(self.path)
        if incomplete:
            os.truncate(self.path, len(content) - len(tail))
        elif tail:
            with self.path.open("ab") as file:
                file.write(b"\n")
        return incomplete


def load(source: Path) -> list[Record]:
    """Read the records of a file, or of an output folder of `benchmark.py`.

    Raises:
        BadInput: The file does not exist, is empty, or contains something other than records.
    """
    path = source / JSON_NAME if source.is_dir() else source
    if not path.is_file():
        raise BadInput(f"{path} does not exist; benchmark.py prints the path of its records")
    if last_line_incomplete(path):
        print(f"warning: {path}: ignoring the last line, which is incomplete", file=sys.stderr)
    records = read(path)
    if not records:
        raise BadInput(f"{path} contains no records")
    return records


def read(path: Path) -> list[Record]:
    """Read the records of a JSON Lines file, ignoring an incomplete last line.

    Raises:
        BadInput: The file cannot be read, or a line is not a valid record.
    """
    lines = _lines(path)
    if last_line_incomplete(path):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line)
        fault = "not JSON" if record is None else _find_fault(record)
        if fault:
            raise BadInput(
                f"{path}, line {number} is not a valid record ({fault}); delete the line, or use "
                "another file"
            )
        records.append(record)
    return records


def last_line_incomplete(path: Path) -> bool:
    """Return whether the last line is the beginning of a record that was not fully written.

    Raises:
        BadInput: The file cannot be read.
    """
    last = _lines(path)[-1]
    return last.startswith("{") and _parse(last) is None


def case_key(record: Record) -> str:
    """Return a key that identifies a measurement: case, settings, machine and versions."""
    return json.dumps([record.get(key) for key in _CASE], sort_keys=True)


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write records as CSV, with dotted names for nested values, and without layer times.

    The file is replaced only after the new one is complete.
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
    """Return a record without nesting: `{"machine": {"cpu": 1}}` becomes `{"machine.cpu": 1}`."""
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
    """Return the text of a file split at line feeds; normally the last part is empty."""
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        # An incomplete last line may end in the middle of a character.
        if error.end == len(error.object) and error.reason == "unexpected end of data":
            return error.object[: error.start].decode("utf-8").split("\n")
        raise BadInput(f"{path} is not a text file, so it contains no records") from error


def _parse(line: str) -> Any:
    """Return the value of a line, or None if it is not valid JSON. NaN is not valid JSON."""
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not valid JSON")


def _find_fault(record: Any) -> str:
    """Return why a JSON value is not a record, or an empty string if it is one."""
    if not isinstance(record, dict):
        return "not a JSON object"
    for key in _REQUIRED:
        if record.get(key) is None:
            return f"{key} is missing"
    for key, value in record.items():
        number = key.endswith(("_ms", "_bytes", "_j")) or key in _NUMBERS
        if value is None:
            continue
        if number and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"{key}={str(value)[:40]!r} is not a number"
        if number and not math.isfinite(value):
            return f"{key} is not a finite number"
        if key in _TEXTS and not isinstance(value, str):
            return f"{key} is not a string"
        if key in _OBJECTS and not isinstance(value, dict):
            return f"{key} is not an object"
    size = record["input_size"]
    if not isinstance(size, list) or len(size) < 3 or not all(type(n) is int for n in size):
        return f"input_size={str(size)[:40]} is not a shape"
    if record.get("fused") not in (None, True, False):
        return "fused is not true, false or null"
    return _find_fault_in_layers(record.get("layers") or {"layers": []})


def _find_fault_in_layers(layers: Any) -> str:
    rows = layers.get("layers") if isinstance(layers, dict) else None
    if not isinstance(rows, list):
        return "layers is not an object with a list of layers"
    for row in rows:
        if not isinstance(row, dict) or any(
            type(row.get(key)) not in kinds for key, kinds in _LAYER.items()
        ):
            return f"a layer lacks a valid value for one of {', '.join(_LAYER)}"
    return ""
