"""The schema of a record: the keys it may have, and the values that they may take.

Records are checked once, when a file is read. Tables, reports and comparisons rely on it: times are
positive, counts fit into 63 bits, and texts can be encoded and printed.
"""

import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

REQUIRED = ("model", "input_size", "runtime", "p50_ms")

_LARGEST = 2**63  # no count, size or time is larger
_SMALLEST = 1e-6  # ms; no clock resolves shorter times
_MAX_DEPTH = 20  # of nested values; deeper ones would exhaust the stack of a reader
_MAX_TEXT = 20_000  # characters

# Lone surrogates cannot be encoded; control characters can move the cursor of a terminal.
_UNPRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_REPLACEMENT = "\ufffd"

Check = Callable[[Any], str]  # returns what is wrong with a value, "" if nothing is


def find_fault(record: Any) -> str:
    """Return why a JSON value is not a record, or an empty string if it is one."""
    if not isinstance(record, dict):
        return "not a JSON object"
    for key in REQUIRED:
        if record.get(key) is None:
            return f"{key} is missing"
    for key, value in record.items():
        if value is not None and (fault := _check_of(key)(value)):
            return f"{key}={_shown(value)} {fault}"
    return _unordered(record)


def printable(value: Any) -> Any:
    """Return a JSON value whose texts can be encoded and printed.

    Raises:
        ValueError: The value is nested too deeply.
    """
    return _printable(value, _MAX_DEPTH)


def _printable(value: Any, depth: int) -> Any:
    if depth == 0:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        return _UNPRINTABLE.sub(_REPLACEMENT, value)
    if isinstance(value, list):
        return [_printable(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {_printable(k, depth): _printable(v, depth - 1) for k, v in value.items()}
    return value


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:40]}..."


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is not a number"
    if not math.isfinite(value) if isinstance(value, float) else abs(value) >= _LARGEST:
        return "is not a finite number" if isinstance(value, float) else "has too many digits"
    return "" if value >= 0 else "is negative"


def _positive(value: Any) -> str:
    return _number(value) or ("" if value >= _SMALLEST else "is not above 0")


def _whole(value: Any) -> str:
    if type(value) is not int:
        return "is not an integer"
    return _number(value) or ("" if value >= 1 else "is less than 1")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return "is not a string"
    return "" if len(value) <= _MAX_TEXT else "is too long"


def _name(value: Any) -> str:
    return _text(value) or ("" if value.strip() else "is empty")


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "is not true, false or null"


def _date(value: Any) -> str:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return "is not a date such as 2026-01-31T12:00:00+00:00"
    return ""


def _object(value: Any) -> str:
    return "" if isinstance(value, dict) else "is not an object"


def _facts(value: Any) -> str:
    """Check a description of a machine or of versions: an object without nested values."""
    if fault := _object(value):
        return fault
    nested = [key for key, entry in value.items() if isinstance(entry, dict | list)]
    return f"has a nested value, {nested[0]!r}" if nested else ""


def _shape(value: Any) -> str:
    valid = isinstance(value, list) and 3 <= len(value) <= 6
    return (
        "" if valid and not any(map(_whole, value)) else "is not a shape such as [1, 3, 224, 224]"
    )


_LAYER: dict[str, Check] = {
    **dict.fromkeys(("name", "type", "bound"), _text),
    **dict.fromkeys(("ms", "macs", "params", "bytes"), _number),
}


def _layers(value: Any) -> str:
    rows = value.get("layers") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        return "is not an object with a list of layers"
    for row in rows:
        if not isinstance(row, dict) or any(
            row.get(key) is None or check(row[key]) for key, check in _LAYER.items()
        ):
            return f"has a layer that lacks a valid value for one of {', '.join(_LAYER)}"
    limits = value.get("roofline") or {}
    if not isinstance(limits, dict) or any(map(_positive, limits.values())):
        return "has a roofline that is not an object of numbers above 0"
    return ""


def _paired(value: Any) -> str:
    """Check the comparison of the fused model with the unfused one."""
    ends = value if isinstance(value, dict) else {}
    low, mid, high = (ends.get(key) for key in ("low", "ratio", "high"))
    known = [end for end in (low, mid, high) if end is not None]
    invalid = mid is None or any(map(_positive, known)) or known != sorted(known)
    if invalid or (low is None) != (high is None):
        return "is not an object with low <= ratio <= high"
    return ""


def _measured(*needed: str) -> Check:
    """Return the check of an object of numbers that has at least these keys."""

    def check(value: Any) -> str:
        if fault := _object(value):
            return fault
        for key in needed:
            if value.get(key) is None:
                return f"lacks {key}"
        for key, entry in value.items():
            if entry is not None and key != "curve" and (fault := _number(entry)):
                return f"has {key}, which {fault}"
        return ""

    return check


def _sustained(value: Any) -> str:
    """Check a curve over time."""
    if fault := _measured("first_ms", "last_ms", "slowdown")(value):
        return fault
    rows = value.get("curve")
    if not isinstance(rows, list) or not rows:
        return "has no curve"
    faults = map(_measured("t_s", "calls", "p50_ms"), rows)
    return next((f"has a point that {fault}" for fault in faults if fault), "")


_PACED = ("pace", "n", "missed", "latency_p50_ms", "late_p50_ms", "response_p50_ms")
_PIPELINE = ("n", "total_p50_ms") + tuple(
    f"{step}_{key}"
    for step in ("decode", "resize", "normalise", "model")
    for key in ("p50_ms", "share")
)

_SCHEMA: dict[str, Check] = {
    **dict.fromkeys(("model", "runtime"), _name),
    **dict.fromkeys(
        ("runtime_version", "dtype", "layout", "device", "command", "count_error"), _text
    ),
    **dict.fromkeys(("params", "macs", "flops", "activations", "intensity", "spread"), _number),
    **dict.fromkeys(("n", "threads"), _whole),
    **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "min_ms", "low_ms", "high_ms"), _positive),
    **dict.fromkeys(("fused", "steady"), _flag),
    **dict.fromkeys(("args", "asked"), _object),
    **dict.fromkeys(("machine", "versions"), _facts),
    "date": _date,
    "input_size": _shape,
    "layers": _layers,
    "paired": _paired,
    "paced": _measured(*_PACED),
    "pipeline": _measured(*_PIPELINE),
    "sustained": _sustained,
}


def _check_of(key: str) -> Check:
    """Return the check of a key; an unknown key may have any value, unless its unit is known."""
    if key in _SCHEMA:
        return _SCHEMA[key]
    return _number if key.endswith(("_ms", "_s", "_bytes", "_j")) else lambda value: ""


def _unordered(record: dict[str, Any]) -> str:
    """Return which percentile or end of the interval is on the wrong side of the median."""
    for chain in (("min_ms", "p50_ms", "p90_ms", "p99_ms"), ("low_ms", "p50_ms", "high_ms")):
        known = [key for key in chain if record.get(key) is not None]
        for small, large in zip(known, known[1:], strict=False):
            if record[small] > record[large]:
                return f"{small}={record[small]:g} exceeds {large}={record[large]:g}"
    if (record.get("low_ms") is None) != (record.get("high_ms") is None):
        return "low_ms and high_ms belong together"
    return ""
