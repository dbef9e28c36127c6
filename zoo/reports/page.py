"""Write records as one self-contained HTML page that works offline.

The page contains the data as JSON, and its script draws the tables and plots. To fit hundreds of
models into a few megabytes, rows are lists without keys, and layers are stored column by column.
"""

import html
import json
from collections import Counter
from importlib import resources
from string import Template
from typing import Any

from zoo.reports.records import Record
from zoo.reports.table import fused_word
from zoo.reports.view import Column, Pair, View, family

LAYERS_BYTES = 4_000_000  # size limit for the layers of all records

# The columns that a narrow screen shows.
_ON_PHONES = ("model", "variant", "runtime", "top1", "p50_ms", "ratio", "verdict")

_PAIR_COLUMNS = (
    ("model", "model", "text", "Model name for zoo.create_model."),
    ("image", "input", "text", "Input size: batch, channels, height, width."),
    ("setting", "runtime", "text", "Runtime and its version."),
    ("p50", "ms unfused", "ms", "Median latency of the unfused model."),
    ("p50_fused", "ms fused", "ms", "Median latency of the fused model."),
    ("ratio", "ratio", "ratio", "Fused latency / unfused latency; below 1, the fused is faster."),
    ("low", "low", "ratio", "Lower end of the 95 % confidence interval of the ratio."),
    ("high", "high", "ratio", "Upper end of the 95 % confidence interval of the ratio."),
    (
        "verdict",
        "fused is",
        "text",
        "No difference means that noise may be the reason. Only calls in turn can show more.",
    ),
    ("params", "params unfused", "count", "Parameters of the unfused model."),
    ("params_fused", "params fused", "count", "Parameters of the fused model."),
    ("macs", "MACs unfused", "count", "Multiply-accumulates of the unfused model for one image."),
    ("macs_fused", "MACs fused", "count", "Multiply-accumulates of the fused model for one image."),
)


def render(view: View, title: str) -> str:
    """Return the HTML of the page.

    Args:
        view: The records to show.
        title: Name of the records, shown below the heading.
    """
    folder = resources.files("zoo.reports") / "page"
    parts = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "tables.js", "plot.js", "page.js")
    }
    data = json.dumps(
        _data(view, title), ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return Template(parts["page.html"]).substitute(
        title=html.escape(view.headline()),
        style=parts["page.css"],
        script="\n".join(text for name, text in parts.items() if name.endswith(".js")),
        # Text from a record cannot close the script element around the JSON.
        data=data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
    )


def _data(view: View, title: str) -> dict[str, Any]:
    layers, omitted = _layers(view)
    return {
        "title": view.headline(),
        "families": [family(record["model"]) for record in view.records],
        "columns": [_column(column) for column in view.columns],
        "rows": [[_short(column.value(r)) for column in view.columns] for r in view.records],
        "points": {
            setting: [vars(point) for point in points] for setting, points in view.points().items()
        },
        "pair_columns": [
            {
                **dict(zip(("key", "title", "kind", "help"), column, strict=True)),
                "minor": column[0] not in _ON_PHONES,
            }
            for column in _PAIR_COLUMNS
        ],
        "pairs": [_pair(pair) for pair in view.pairs()],
        "layers": layers,
        "omitted": omitted,
        "bounds": _distinct(view, "bound"),
        "types": _distinct(view, "type"),
        "environments": [
            [
                [key.replace("_", " "), str(value)]
                for table in environment.values()
                for key, value in table.items()
            ]
            for environment in view.environments
        ],
        "commands": list(
            dict.fromkeys(r["command"] for r in view.records if r.get("command") is not None)
        ),
        "summary": f"{title}: {view.summary()}",
        "shared": view.shared_settings(),
    }


def _column(column: Column) -> dict[str, Any]:
    texts = {key: getattr(column, key) for key in ("key", "title", "kind", "help")}
    return {**texts, "minor": column.key not in _ON_PHONES}


def _pair(pair: Pair) -> list[Any]:
    a, b = pair.unfused, pair.fused
    times, params, macs = (
        [record.get(key) for record in (a, b)] for key in ("p50_ms", "params", "macs")
    )
    ratio = (pair.ratio.value, pair.ratio.low, pair.ratio.high, pair.verdict)
    size = "x".join(map(str, a["input_size"]))
    values = (a["model"], size, pair.setting, *times, *ratio, *params, *macs)
    return [_short(value) for value in values]


def _distinct(view: View, key: str) -> list[str]:
    """Return the distinct values of `key` over all layers; layers refer to them by index."""
    return list(
        dict.fromkeys(layer[key] for record in view.records for layer in _layers_of(record))
    )


def _layers(view: View) -> tuple[list[dict[str, Any]], int]:
    """Return the layers of as many records as `LAYERS_BYTES` allows, and how many are omitted.

    The first record of every model comes before the second record of any model.
    """
    indices = {
        key: {value: index for index, value in enumerate(_distinct(view, key))}
        for key in ("type", "bound")
    }
    with_layers = [row for row, record in enumerate(view.records) if _layers_of(record)]
    records_of_model: Counter[str] = Counter()
    rank = {}
    for row in with_layers:
        name = view.records[row]["model"]
        rank[row] = records_of_model[name]
        records_of_model[name] += 1
    entries: dict[int, dict[str, Any]] = {}
    remaining_bytes = LAYERS_BYTES
    for row in sorted(with_layers, key=lambda row: rank[row]):
        entry = _entry(row, view.records[row], indices)
        size = len(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode())
        remaining_bytes -= size
        if remaining_bytes < 0:
            break
        entries[row] = entry
    return [entries[row] for row in sorted(entries)], len(with_layers) - len(entries)


def _layers_of(record: Record) -> list[dict[str, Any]]:
    return (record.get("layers") or {}).get("layers", [])


def _entry(row: int, record: Record, indices: dict[str, Any]) -> dict[str, Any]:
    layers = _layers_of(record)
    columns = {
        key: [_short(layer[key]) for layer in layers]
        for key in ("name", "ms", "macs", "params", "bytes")
    }
    return {
        "row": row,
        "input": "x".join(map(str, record["input_size"])),
        "variant": fused_word(record.get("fused")),
        **columns,
        **{key: [index[layer[key]] for layer in layers] for key, index in indices.items()},
        "roofline": record["layers"].get("roofline"),
    }


def _short(value: Any) -> Any:
    """Round a float to five significant digits, which keeps the page small."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
