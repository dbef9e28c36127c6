"""The records of a search: one per measured candidate, and `pick.json`, which others can quote.

The measurements are records as those of `zoo benchmark`, in `results.jsonl`, so that `zoo report`
shows them and an interrupted search goes on. `pick.json` has the question and the answer.
"""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zoo.environment import describe_machine, versions
from zoo.errors import BadInput, first_line
from zoo.picking.candidates import Candidate
from zoo.picking.search import Measured
from zoo.profiling.layers import Roofline
from zoo.profiling.stats import Summary
from zoo.reports.records import Record, case_key
from zoo.reports.schema import find_fault
from zoo.settings import PickConfig

NAME = "pick.json"
KIND = "zoo pick 1"  # the kind and the version of the file

_TIMES = {"p50": "p50_ms", "p90": "p90_ms", "p99": "p99_ms", "min": "min_ms"}
_TIMES |= {"low": "low_ms", "high": "high_ms"}


def environment() -> Record:
    """Return the machine and the versions, which are part of every record."""
    return {"machine": describe_machine(), "versions": versions()}


def identity(candidate: Candidate, threads: int, here: Record) -> Record:
    """Return the values that identify the measurement of a candidate.

    Args:
        candidate: What is measured.
        threads: Threads per call.
        here: `environment()`, which takes a while.
    """
    return {
        "model": candidate.model,
        "args": {},
        "input_size": list(candidate.input_size),
        "fused": True,
        "runtime": candidate.runtime,
        "asked": {"threads": threads, "int8": candidate.int8, "command": "pick"},
        **here,
    }


def to_record(found: Measured, threads: int, limits: Roofline, here: Record) -> Record:
    """Return the record of a measurement."""
    candidate, times = found.candidate, found.times
    return {
        **identity(candidate, threads, here),
        **{key: getattr(times, name) for name, key in _TIMES.items()},
        "n": times.n,
        "spread": times.spread,
        "predicted_ms": found.predicted_ms,
        "dropped": found.dropped,
        "repeated": found.repeated,
        "top1": candidate.top1,
        "source": candidate.source,
        "licence": candidate.licence,
        "macs": candidate.macs,
        "moved_bytes": candidate.moved_bytes,
        "gmacs_per_s": limits.gmacs_per_s,
        "gbytes_per_s": limits.gbytes_per_s,
        "threads": threads,
        "dtype": "int8" if candidate.int8 else "float32",
        "layout": "NCHW",
        "device": "cpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def from_records(
    records: Iterable[Record], candidates: Sequence[Candidate], threads: int, here: Record
) -> tuple[list[Measured], Roofline | None]:
    """Return the measurements of these candidates on this machine, and its limits, if recorded."""
    known = {case_key(identity(candidate, threads, here)): candidate for candidate in candidates}
    found: dict[Candidate, Measured] = {}
    limits = None
    for record in records:
        candidate = known.get(case_key(record))
        if candidate is None or not _is_complete(record):
            continue
        times = Summary(
            **{name: record[key] for name, key in _TIMES.items()},
            n=record["n"],
            spread=record["spread"],
        )
        states = (record["dropped"], record["repeated"])
        found[candidate] = Measured(candidate, times, record["predicted_ms"], *states)
        limits = Roofline(record["gmacs_per_s"], record["gbytes_per_s"])
    return list(found.values()), limits


def _is_complete(record: Record) -> bool:
    """Return whether a record has what `to_record` writes, of the right type."""
    positive = (*_TIMES.values(), "predicted_ms", "gmacs_per_s", "gbytes_per_s", "n")
    optional = ("p90_ms", "p99_ms")
    return (
        all(_is_positive(record.get(key)) for key in positive if key not in optional)
        and all(record.get(key, "") is None or _is_positive(record.get(key)) for key in optional)
        and all(isinstance(record.get(key), bool) for key in ("dropped", "repeated"))
        and _is_number(record.get("spread"))
    )


def summary(
    settings: PickConfig,
    here: Record,
    runtimes: Sequence[str],
    candidates: int,
    records: Sequence[Record],
    failed: dict[Candidate, str],
    finalists: Sequence[Record],
    commands: Sequence[str],
) -> dict[str, Any]:
    """Return the content of `pick.json`.

    Args:
        settings: What was looked for.
        here: `environment()`.
        runtimes: The runtimes that were considered.
        candidates: How many candidates there were.
        records: The measurements.
        failed: Why candidates could not be measured.
        finalists: Those of `records` within the budget, the best first.
        commands: How to train and export the winner.
    """
    return {
        "kind": KIND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **here,
        "asked": {
            "ms": settings.ms,
            "top1": settings.top1,
            "runtime": list(runtimes),
            "threads": settings.threads,
            "size": settings.size,
            "int8": settings.int8,
            "licence": settings.licence,
            "models": settings.models,
            "data": settings.data,
        },
        "candidates": candidates,
        "measured": list(records),
        "failed": {str(candidate): reason for candidate, reason in failed.items()},
        "finalists": list(finalists),
        "winner": finalists[0] if finalists else None,
        "commands": list(commands),
        "weights": "random: they do not affect the time",
    }


def text(content: dict[str, Any]) -> str:
    """Return the text of `pick.json`."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> dict[str, Any]:
    """Read `pick.json`, or the one in a folder, and check it.

    Raises:
        BadInput: It cannot be read, or is not such a file.
    """
    path = path / NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read: {first_line(error)}") from error
    if fault := find_pick_fault(content):
        raise BadInput(f"{path} is not a result of `zoo pick`: {fault}")
    return content


def find_pick_fault(content: Any) -> str:
    """Return why a JSON value is not the content of `pick.json`; an empty string if it is."""
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return f"kind is not {KIND!r}"
    types: dict[str, type] = {"asked": dict, "machine": dict, "versions": dict, "failed": dict}
    types |= {"measured": list, "finalists": list, "commands": list, "candidates": int}
    for key, kind in types.items():
        if not isinstance(content.get(key), kind):
            return f"{key} is missing or of the wrong type"
    if not _is_positive(content["asked"].get("ms")):
        return "asked.ms is not a number above 0"
    for key in ("measured", "finalists"):
        for number, record in enumerate(content[key]):
            if fault := find_fault(record) or _pick_record_fault(record):
                return f"{key}[{number}]: {fault}"
    if content.get("winner") != (content["finalists"] or [None])[0]:
        return "winner is not the first of the finalists"
    return ""


def _pick_record_fault(record: Record) -> str:
    if not _is_complete(record):
        return "a field of `zoo pick` is missing or of the wrong type"
    return "" if _is_number(record.get("top1")) else "top1 is not a number"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
