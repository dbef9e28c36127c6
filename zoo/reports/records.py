"""Records of measurements on disk: a JSON Lines file and a CSV copy of it.

A sweep may be killed at any moment, even while it writes a line, and a disk may be full. Therefore
a record is on disk when `add` returns, a line that was not fully written is removed, damaged lines
are left out with a warning, and `case_key` identifies the measurements that a file already
contains.
"""

import contextlib
import csv
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from zoo.errors import BadInput, first_line
from zoo.reports.schema import find_fault, printable
from zoo.reports.writing import no_space, replace_files

Record = dict[str, Any]

JSON_NAME = "results.jsonl"

# Measurements that agree in all of these keys are repetitions of each other.
_CASE = ("model", "args", "input_size", "fused", "runtime", "asked", "machine", "versions")

# A spreadsheet would run a text that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass
class Content:
    """What a file of records contains.

    Attributes:
        records: The valid records.
        faults: Why each other line is left out, by its number.
        recovered: Number of records that were found behind the beginning of a torn line.
        torn_at: Where the last line begins if it was not fully written, as a number of bytes.
    """

    records: list[Record] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    recovered: int = 0
    torn_at: int | None = None

    def notes(self) -> list[str]:
        """Return one line for each kind of damage."""
        lines = []
        if self.faults:
            number, fault = next(iter(self.faults.items()))
            count = len(self.faults)
            what = (
                "1 line that is not a valid record"
                if count == 1
                else (f"{count} lines that are not valid records, the first of them")
            )
            lines.append(f"ignoring {what}: line {number} ({fault})")
        if self.recovered:
            plural = "" if self.recovered == 1 else "s"
            lines.append(f"recovered {self.recovered} record{plural} from torn lines")
        return lines


class Results:
    """A file of records, and a CSV copy of it in the same folder.

    New records are appended; records of earlier runs are kept.

    Attributes:
        path: Path of the JSON Lines file.
        earlier: The valid records that the file contained when it was opened.
        notes: What was damaged in the file, one line each.
    """

    def __init__(self, out: Path, name: str = "profile.out") -> None:
        """Open the file, creating its folder if necessary.

        Args:
            out: A folder, which contains `results.jsonl`, or the path of a file `<name>.jsonl`.
            name: Name of the setting in error messages.

        Raises:
            BadInput: The file cannot be written, or contains no record but something else.
        """
        self.path = out if out.suffix == ".jsonl" else out / JSON_NAME
        self._new_folders: list[Path] = []
        folder = self.path.parent
        try:
            self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self.path, self.csv):
                existed = path.exists()
                if existed and not path.is_file():
                    raise BadInput(f"{name}={str(out)!r}: {path} is not a file")
                path.open("a").close()
                if not existed:
                    path.unlink()
        except OSError as error:
            self.discard()
            raise BadInput(
                f"{name}={str(out)!r} cannot be written: {error.strerror or error}"
            ) from error
        content = _content(self.path) if self.path.exists() else Content()
        self.earlier = content.records
        self.notes = content.notes()
        if content.torn_at is not None:
            os.truncate(self.path, content.torn_at)
            self.notes.append("removed the last line, which was incomplete")

    @property
    def csv(self) -> Path:
        """Path of the CSV file."""
        return self.path.with_suffix(".csv")

    def add(self, record: Record) -> None:
        """Append a record and wait until it is on disk.

        Raises:
            BadInput: The record cannot be written, because the disk is full for instance. The file
                then ends as before.
        """
        # A lone surrogate becomes `\\udc80`, which is an escape of JSON, too.
        text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")
        try:
            with self.path.open("a+b", buffering=0) as file:
                start = file.seek(0, os.SEEK_END)
                if start and not _ends_line(file, start):
                    line = b"\n" + line  # another process was killed while it wrote
                _append(file, line, start)
        except OSError as error:
            raise BadInput(no_space(error, self.path)) from error

    def finish(self) -> None:
        """Write the CSV file, or remove the new folders if no record was added.

        Raises:
            BadInput: The file cannot be written; an earlier CSV file stays as it was.
        """
        if self.path.exists():
            replace_files({self.csv: csv_text(_content(self.path).records)})
        else:
            self.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(*() if kind is None else (BadInput,)):  # the first error matters
            self.finish()

    def discard(self) -> None:
        """Remove the folders that were created and are still empty."""
        for path in self._new_folders:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _ends_line(file: Any, size: int) -> bool:
    file.seek(size - 1)
    return file.read(1) == b"\n"


def _append(file: Any, line: bytes, start: int) -> None:
    """Write a line completely, or leave the file as it was.

    Raises:
        OSError: The line could not be written.
    """
    try:
        written = file.write(line)  # a disk with too little space takes a part, without an error
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            size = os.fstat(file.fileno()).st_size
            if start < size < start + len(line):  # else another process has appended, too
                os.ftruncate(file.fileno(), start)
        raise


def load(source: Path) -> list[Record]:
    """Read the records of a file, or of an output folder of `benchmark.py`.

    Damaged lines are left out, with a warning on stderr.

    Raises:
        BadInput: The file does not exist, is empty, or contains no valid record.
    """
    path = file_of(source)
    content = _content(path)
    notes = content.notes()
    if content.torn_at is not None:
        notes.append("ignoring the last line, which is incomplete")
    for note in notes:
        print(f"warning: {path}: {note}", file=sys.stderr)
    if not content.records:
        raise BadInput(f"{path} contains no records")
    return content.records


def file_of(source: Path) -> Path:
    """Return the path of the records: of a file itself, or of the one in a folder.

    Raises:
        BadInput: There is no such file.
    """
    try:
        path = source / JSON_NAME if source.is_dir() else source
        is_file, exists = path.is_file(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or with a null byte
        raise BadInput(f"{str(source)[:80]!r} is not a path: {first_line(error)}") from error
    if not is_file:
        fault = "is not a file" if exists else "does not exist"
        raise BadInput(f"{path} {fault}; `zoo benchmark` prints the path of its records")
    return path


def read(path: Path) -> list[Record]:
    """Return the valid records of a JSON Lines file.

    Raises:
        BadInput: The file cannot be read, or has complete lines but no valid record.
    """
    return _content(path).records


def _content(path: Path) -> Content:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    content = parse(data)
    if content.faults and not content.records:
        number, fault = next(iter(content.faults.items()))
        raise BadInput(
            f"{path}, line {number} is not a valid record ({fault}), and no other line is one; use "
            "another file"
        )
    return content


def parse(data: bytes) -> Content:
    """Return the records in the bytes of a JSON Lines file."""
    content = Content()
    at = len(b"\xef\xbb\xbf") if data.startswith(b"\xef\xbb\xbf") else 0  # byte order mark
    lines = data[at:].split(b"\n")
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if line.strip():
            _add_line(content, line, number, at if last else None)
        at += len(line) + 1
    return content


def _add_line(content: Content, line: bytes, number: int, at: int | None) -> None:
    """Add the record of a line, or those behind the beginning of a torn one.

    Args:
        content: What to add to.
        line: The line, without its line feed.
        number: Its number, from 1.
        at: Where it begins, if it is the last line of the file and may be incomplete.
    """
    text = line.decode("utf-8", "surrogateescape")
    fault, record = _record(text)
    if not fault:
        content.records.append(record)
        return
    found, end = _behind_torn(text) if record is None else ([], 0)
    content.records += found
    content.recovered += len(found)
    rest = text[end:].strip()
    if at is not None and rest.startswith("{") and record is None:
        content.torn_at = at + len(text[:end].encode("utf-8", "surrogateescape"))
    elif not found:
        content.faults[number] = fault


def _record(text: str) -> tuple[str, Any]:
    """Return what is wrong with a line, and its value; None if it is not JSON."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return "not JSON", None
    return _checked(value)


def _checked(value: Any) -> tuple[str, Any]:
    try:
        value = printable(value)
    except ValueError as error:
        return str(error), value
    return find_fault(value), value


def _behind_torn(text: str) -> tuple[list[Record], int]:
    """Return the records in a line that is not JSON, and where the last of them ends.

    Such a line is the beginning of a record, whose process was killed, with another record behind.
    """
    found, end = [], 0
    at = text.find('{"')
    while at >= 0:
        try:
            value, stop = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            stop = at + 1
        else:
            fault, record = _checked(value)
            if fault:
                stop = at + 1
            else:
                found.append(record)
                end = stop
        at = text.find('{"', stop)
    return found, end


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not valid JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def case_key(record: Record) -> str:
    """Return a key that identifies a measurement: case, settings, machine and versions."""
    return json.dumps([record.get(key) for key in _CASE], sort_keys=True)


def csv_text(records: Sequence[Record]) -> str:
    """Return records as CSV, with dotted names for nested values, and without layer times."""
    rows = [flatten({k: v for k, v in record.items() if k != "layers"}) for record in records]
    rows = [{_literal(key): _literal(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _literal(value: Any) -> Any:
    """Return a cell that a spreadsheet shows as it is, with a quote before what looks a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


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
