"""`zoo/facts/figures.json`: counted MACs and measured latencies, for `zoo list` and `zoo info`."""

import json
from collections.abc import Sequence
from typing import Any

from tools.counts import Counts
from tools.latencies import by_model
from tools.project import ROOT
from zoo.reports.figures import FILE as NAME
from zoo.reports.records import Record

FILE = ROOT / "zoo" / "facts" / NAME


def render(counts: Counts, records: Sequence[Record]) -> str:
    """Return the text of the file, a line for each model.

    Args:
        counts: Of every finished model.
        records: Latencies; those of fused models are shipped.
    """
    found = by_model(records)
    models = {name: _entry(entry, found.get(name, {})) for name, entry in counts.items()}
    rows = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(models.items())]
    runtimes = list(dict.fromkeys(runtime for entry in models.values() for runtime in entry["ms"]))
    return (
        f'{{\n"measured_on": {json.dumps(_measured_on(records))},\n'
        f'"runtimes": {json.dumps(runtimes)},\n"models": {{\n' + ",\n".join(rows) + "\n}\n}\n"
    )


def _entry(counted: dict[str, Any], forms: dict[tuple[str, bool], Record]) -> dict[str, Any]:
    times = {
        runtime: [_rounded(record.get(key)) for key in ("p50_ms", "low_ms", "high_ms")]
        for (runtime, fused), record in forms.items()
        if fused
    }
    cost = {key: counted[key] for key in ("macs", "moved_bytes") if key in counted}
    return {**cost, "ms": times}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _measured_on(records: Sequence[Record]) -> str:
    """Describe the machines and settings in a few words."""
    used = dict.fromkeys((r["threads"], r["machine"].get("cpu", "a CPU")) for r in records)
    parts = [f"{threads} thread{'' if threads == 1 else 's'} of {cpu}" for threads, cpu in used]
    return "; ".join(parts) or "not measured"
