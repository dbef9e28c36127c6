"""One self-contained HTML page of records: opens offline, loads nothing.

The figures go in as JSON, the script of the page draws them. Columns stand once, rows are lists,
and layers are lists by figure, so that hundreds of models fit into a few megabytes.
"""

import html
import json
from importlib import resources
from string import Template
from typing import Any

from zoo.reports.records import Record
from zoo.reports.table import fused_word
from zoo.reports.view import Column, Pair, View

LAYERS_BYTES = 4_000_000  # what the layers of all records may take in the page

_PAIR_COLUMNS = (
    ("model", "model", "text", "Name for zoo.create_model."),
    ("image", "input", "text", "Images in a call, and their size."),
    ("setting", "runtime", "text", "What executed it."),
    ("p50", "ms unfused", "ms", "Median time of a call as trained."),
    ("p50_fused", "ms fused", "ms", "Median time of a call when re-parameterised."),
    ("ratio", "time", "ratio", "Fused divided by unfused: below 1, fusing makes it faster."),
    ("low", "from", "ratio", "95 % confidence interval of that: its lower end."),
    ("high", "to", "ratio", "95 % confidence interval of that: its upper end."),
    ("verdict", "fusing makes it", "text", "No difference where the noise explains it."),
    ("params", "params unfused", "count", "Parameters as trained."),
    ("params_fused", "params fused", "count", "Parameters when re-parameterised."),
    ("macs", "MACs unfused", "count", "Multiply-accumulates of one image as trained."),
    ("macs_fused", "MACs fused", "count", "Multiply-accumulates of one image, re-parameterised."),
)


def render(view: View, title: str) -> str:
    """Return the page.

    Args:
        view: The records.
        title: Its heading.
    """
    folder = resources.files("zoo.profiling") / "page"
    parts = {
        name: (folder / f"page.{suffix}").read_text(encoding="utf-8")
        for name, suffix in (("page", "html"), ("style", "css"), ("script", "js"))
    }
    data = json.dumps(_data(view), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Template(parts["page"]).substitute(
        title=html.escape(title),
        style=parts["style"],
        script=parts["script"],
        # No text of a record can end the element that holds it.
        data=data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
    )


def _data(view: View) -> dict[str, Any]:
    layers, left_out = _layers(view)
    return {
        "columns": [_column(column) for column in view.columns],
        "rows": [[_short(column.value(r)) for column in view.columns] for r in view.records],
        "points": {
            setting: [vars(point) for point in points] for setting, points in view.points().items()
        },
        "pair_columns": [
            dict(zip(("key", "title", "kind", "help"), column, strict=True))
            for column in _PAIR_COLUMNS
        ],
        "pairs": [_pair(pair) for pair in view.pairs()],
        "layers": layers,
        "left_out": left_out,
        "bounds": _words(view, "bound"),
        "types": _words(view, "type"),
        "environments": [
            [[key, str(value)] for table in place.values() for key, value in table.items()]
            for place in view.environments
        ],
        "commands": list(
            dict.fromkeys(r["command"] for r in view.records if r.get("command") is not None)
        ),
        "summary": view.summary(),
        "shared": view.stated(),
    }


def _column(column: Column) -> dict[str, str]:
    return {key: getattr(column, key) for key in ("key", "title", "kind", "help")}


def _pair(pair: Pair) -> list[Any]:
    a, b = pair.unfused, pair.fused
    times, params, macs = (
        [record.get(key) for record in (a, b)] for key in ("p50_ms", "params", "macs")
    )
    ratio = (pair.ratio.value, pair.ratio.low, pair.ratio.high, pair.ratio.verdict)
    size = "x".join(map(str, a["input_size"]))
    values = (a["model"], size, pair.setting, *times, *ratio, *params, *macs)
    return [_short(value) for value in values]


def _words(view: View, key: str) -> list[str]:
    """Return the words that layers have for `key`, each once; layers name them by their place."""
    return list(dict.fromkeys(layer[key] for record in view.records for layer in _of(record)))


def _layers(view: View) -> tuple[list[dict[str, Any]], int]:
    """Return the layers of records by figure, as many as there is room for, and how many are left.

    Every model gets its turn before another record of a model that is in.
    """
    places = {
        key: {word: place for place, word in enumerate(_words(view, key))}
        for key in ("type", "bound")
    }
    waiting = [row for row, record in enumerate(view.records) if _of(record)]
    seen: dict[str, int] = {}
    turns = {}
    for row in waiting:
        name = view.records[row]["model"]
        seen[name] = turns[row] = seen.get(name, -1) + 1
    entries: dict[int, dict[str, Any]] = {}
    room = LAYERS_BYTES
    for row in sorted(waiting, key=lambda row: turns[row]):
        entry = _entry(row, view.records[row], places)
        room -= len(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode())
        if room < 0:
            break
        entries[row] = entry
    return [entries[row] for row in sorted(entries)], len(waiting) - len(entries)


def _of(record: Record) -> list[dict[str, Any]]:
    return (record.get("layers") or {}).get("layers", [])


def _entry(row: int, record: Record, places: dict[str, Any]) -> dict[str, Any]:
    layers = _of(record)
    columns = {
        key: [_short(layer[key]) for layer in layers]
        for key in ("name", "ms", "macs", "params", "bytes")
    }
    return {
        "row": row,
        "input": "x".join(map(str, record["input_size"])),
        "form": fused_word(record.get("fused")),
        **columns,
        **{key: [known[layer[key]] for layer in layers] for key, known in places.items()},
        "roofline": record["layers"].get("roofline"),
    }


def _short(value: Any) -> Any:
    """Return a figure with as many digits as mean anything, so that a page of many stays small."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
