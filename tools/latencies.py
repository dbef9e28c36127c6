"""Latencies of every finished model: `results/models.jsonl` and the table `results/README.md`.

`python -m tools latencies` measures the models that `results/models.jsonl` lacks; the records of
other machines stay.
"""

import json
from collections.abc import Sequence

from tools.counts import Counts
from tools.project import ROOT, finished
from zoo import registry
from zoo.display import ms, quantity
from zoo.profiling.plan import Plan
from zoo.profiling.sweep import sweep
from zoo.reports.changes import describe
from zoo.reports.markdown import escape, grid
from zoo.reports.pareto import published
from zoo.reports.records import Record
from zoo.reports.records import read as read_records

RECORDS = ROOT / "results" / "models.jsonl"
TABLE = ROOT / "results" / "README.md"

# In PyTorch as trained, and fused in PyTorch and in ONNX Runtime. Each further runtime takes a
# second or two per model.
FORMS = (("eager", False), ("eager", True), ("onnxruntime", True))
# Short, so that all models take minutes; a large model is timed for three seconds at most.
EFFORT = {"min_runs": 10, "min_time": 0.3, "max_time": 3.0}

_ABOUT = (
    "Written by `make generated` from `models.jsonl`, to which `make results` adds the models that "
    "are not measured. A page that sorts and filters: `python -m zoo report results/models.jsonl`. "
    "What the figures mean: [docs/benchmarking.md](../docs/benchmarking.md)."
)
_MEANING = (
    "Times are medians in milliseconds. Eager is PyTorch, as trained or fused (re-parameterised); "
    "best is the lowest latency of all measured runtimes. Memory is the peak growth of the process "
    "during a call of the fused model in PyTorch. MACs are those of one image; top-1 is the best "
    "published accuracy on ImageNet-1k."
)
_HEAD = ["model", "input", "params", "fused params", "MACs", "fused MACs", "top-1", "eager ms"]
_HEAD += ["fused eager ms", "best ms", "best runtime", "memory"]
_NOT_MEASURED = "not measured"


def read() -> list[Record]:
    """Return the stored records; none if there is no file."""
    return read_records(RECORDS) if RECORDS.exists() else []


def plan(names: Sequence[str]) -> Plan:
    """Return the measurements of models: one image of their own size, on one core."""
    settings = {
        "threads": 1,  # so that figures do not depend on the number of free cores
        "dtype": "float32",
        "channels_last": False,
        **EFFORT,
    }
    return Plan(list(names), {}, [None], list(FORMS), [1], settings)


def measure(names: Sequence[str]) -> None:
    """Measure models that have no current records; an interrupted run continues where it stopped.

    Raises:
        ZooError: A model could not be measured.
    """
    found = by_model(prune())
    lacking = [name for name in names if not set(FORMS) <= set(found.get(name, {}))]
    print(f"{len(names) - len(lacking)} of {len(names)} models are in {RECORDS.name}")
    if lacking:
        sweep(plan(lacking), RECORDS)


def prune() -> list[Record]:
    """Drop records of models that are gone or have changed, and of other settings.

    Returns:
        The records that stay.
    """
    if not RECORDS.exists():
        return []
    names, asked = set(finished()), plan([]).requested_settings()
    kept = [
        record
        for record in read()
        if record["model"] in names and record.get("asked") == asked and not _outdated(record)
    ]
    draft = RECORDS.with_suffix(".partial")
    draft.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), "utf-8")
    draft.replace(RECORDS)
    return kept


def render(counts: Counts, records: Sequence[Record]) -> str:
    """Return the table: a row for each finished model, and what it was measured on.

    Args:
        counts: Of every finished model.
        records: A model without any is "not measured".
    """
    found = by_model(records)
    names = finished()
    rows = [_row(name, counts, found.get(name, {})) for name in names]
    machines = list(dict.fromkeys(map(describe, records)))
    head = list(_HEAD)
    if len(machines) > 1:  # numbered in the list above the table
        head.append("machine")
        for name, row in zip(names, rows, strict=True):
            used = {machines.index(describe(record)) + 1 for record in found.get(name, {}).values()}
            row.append(", ".join(map(str, sorted(used))))
    about = f"{len(set(names) & set(found))} of {len(names)} models are measured"
    if records:
        dates = sorted(record["date"][:10] for record in records)
        threads, dtype = records[0]["threads"], records[0]["dtype"]
        about += (
            f", with one image of each model's own size, {threads} "
            f"{'thread' if threads == 1 else 'threads'}, {dtype}, "
            f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}"
        )
    lines = [f"{number}. {escape(text)}" for number, text in enumerate(machines, 1)]
    parts = ["# Results", _ABOUT, f"{about}.", "\n".join(lines), grid(head, rows), _MEANING]
    return "\n\n".join(part for part in parts if part) + "\n"


def by_model(records: Sequence[Record]) -> dict[str, dict[tuple[str, bool], Record]]:
    """Return the records of each model of the package, by runtime and whether fused."""
    found: dict[str, dict[tuple[str, bool], Record]] = {}
    for record in records:
        if registry.is_packaged(record["model"]):
            found.setdefault(record["model"], {})[record["runtime"], record["fused"]] = record
    return found


def best(forms: dict[tuple[str, bool], Record]) -> Record:
    """Return the record of a model with the lowest median."""
    return min(forms.values(), key=lambda record: record["p50_ms"])


def is_measured(name: str, found: dict[str, dict[tuple[str, bool], Record]]) -> bool:
    """Return whether a model has records of all forms, of its present number of parameters."""
    forms = found.get(name, {})
    return set(FORMS) <= set(forms) and not any(map(_outdated, forms.values()))


def _row(name: str, counts: Counts, forms: dict[tuple[str, bool], Record]) -> list[str]:
    size = registry.get_spec(name).facts["input"]["size"]
    accuracy = published({"model": name})
    unfused, fused = (forms.get(("eager", form), {}) for form in (False, True))
    memory = fused.get("peak_memory_bytes")
    fastest = best(forms) if forms else {}
    return [
        name,
        "x".join(map(str, size[1:])),
        quantity(counts[name]["params"]),
        _count(fused, "params"),
        quantity(counts[name]["macs"]),
        _count(fused, "macs"),
        f"{accuracy.top1:.1f}" if accuracy else "",
        *(ms(record["p50_ms"]) if record else _NOT_MEASURED for record in (unfused, fused)),
        ms(fastest["p50_ms"]) if forms else _NOT_MEASURED,
        fastest.get("runtime", ""),
        "" if memory is None else f"{memory / 2**20:.0f} MiB",
    ]


def _count(record: Record, key: str) -> str:
    return quantity(record[key]) if record.get(key) is not None else ""


def _outdated(record: Record) -> bool:
    params = registry.get_spec(record["model"]).facts["params"]
    return not record["fused"] and record["params"] != params
