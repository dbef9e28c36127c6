"""Every finished model measured once: the table of `results/`.

`python -m zoo results` measures the models that it lacks on this machine and writes it; with
`--write` it only writes it anew. The records are `results/models.jsonl`, one line a model and
runtime.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from zoo import registry
from zoo.errors import BadInput
from zoo.profiling.plan import Plan
from zoo.profiling.sweep import sweep
from zoo.reports.changes import describe
from zoo.reports.markdown import escape, grid, ms
from zoo.reports.pareto import published
from zoo.reports.records import Record, load, read
from zoo.reports.table import quantity

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "models.jsonl"
TABLE = ROOT / "results" / "README.md"

# As trained in PyTorch, and re-parameterised in PyTorch and in ONNX Runtime. Each further runtime
# takes a second or two a model.
FORMS = (("eager", False), ("eager", True), ("onnxruntime", True))
# Short, so that all models take minutes; a large one is timed for three seconds at most.
EFFORT = {"min_runs": 10, "min_time": 0.3, "max_time": 3.0}


_ABOUT = (
    "Written by `python -m zoo results` (`make results`) from `models.jsonl`. A page of them that "
    "sorts and filters: `python -m zoo report results/models.jsonl`. What the figures mean: "
    "[docs/benchmarking.md](../docs/benchmarking.md)."
)
_MEANING = (
    "Times are medians in milliseconds; eager is PyTorch, as trained and re-parameterised (fused). "
    "Best is the fastest of all runtimes measured. Memory is the growth of the process at the peak "
    "of a call of the fused model in PyTorch. MACs are those of one image; top-1 is the best "
    "published on ImageNet-1k."
)


def finished() -> list[str]:
    """List the models of the package whose facts do not say that they are in progress."""
    return [
        name
        for name in registry.list_models()
        if registry.is_packaged(name) and "status" not in registry.get_spec(name).facts
    ]


def plan(names: Sequence[str]) -> Plan:
    """Return what is measured of models: one image of their own size, on one core."""
    settings = {
        "threads": 1,  # so that figures do not hang on how many cores are free
        "dtype": "float32",
        "channels_last": False,
        **EFFORT,
    }
    return Plan(list(names), {}, [None], list(FORMS), [1], settings)


def measure_and_write() -> None:
    """Measure the models that `results/` lacks, then write; interrupted, it goes on next time.

    Records of other machines stay: whoever adds a model measures that one.

    Raises:
        ZooError: A model could not be measured; the table says which figures are missing.
    """
    _check_checkout()
    found = by_model(prune(RECORDS))
    lacking = [name for name in finished() if not set(FORMS) <= set(found.get(name, {}))]
    print(f"{len(finished()) - len(lacking)} of {len(finished())} models are in {RECORDS.name}")
    try:
        if lacking:
            sweep(plan(lacking), RECORDS)
    finally:
        if RECORDS.exists():
            write()


def write() -> None:
    """Write the table from the records.

    Raises:
        BadInput: There are no records.
    """
    _check_checkout()
    TABLE.write_text(results_table(load(RECORDS)), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")


def prune(path: Path) -> list[Record]:
    """Drop the records of models that are gone or have changed, or of another way to measure.

    Returns:
        The records that stay.
    """
    if not path.exists():
        return []
    names, asked = set(finished()), plan([]).requested_settings()
    kept = [
        record
        for record in read(path)
        if record["model"] in names and record.get("asked") == asked and not _outdated(record)
    ]
    draft = path.with_suffix(".partial")
    draft.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), "utf-8")
    draft.replace(path)
    return kept


def results_table(records: Sequence[Record]) -> str:
    """Return `results/README.md`: a row for each model, and what it was measured on."""
    head = ["model", "input", "params", "fused", "MACs", "fused", "top-1"]
    head += ["eager ms", "fused", "best ms", "in", "memory"]
    machines = list(dict.fromkeys(map(describe, records)))
    found = by_model(records)
    rows = [_model_row(name, forms) for name, forms in found.items()]
    if len(machines) > 1:  # numbered in the list above the table
        head.append("on")
        for row, forms in zip(rows, found.values(), strict=True):
            used = {machines.index(describe(record)) + 1 for record in forms.values()}
            row.append(", ".join(map(str, sorted(used))))
    dates = sorted(record["date"][:10] for record in records)
    first = records[0]
    about = (
        f"{len(rows)} models, one image of each model's own size, {first['threads']} threads, "
        f"{first['dtype']}; measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )
    lines = [f"{number}. {escape(text)}" for number, text in enumerate(machines, 1)]
    parts = ["# Results", _ABOUT, about, "\n".join(lines), grid(head, rows), _MEANING]
    return "\n\n".join(parts) + "\n"


def by_model(records: Sequence[Record]) -> dict[str, dict[tuple[str, bool], Record]]:
    """Return the records of each model that there still is, by runtime and whether fused."""
    found: dict[str, dict[tuple[str, bool], Record]] = {}
    for record in records:
        found.setdefault(record["model"], {})[record["runtime"], record["fused"]] = record
    return {name: found[name] for name in sorted(found) if registry.is_packaged(name)}


def _model_row(name: str, forms: dict[tuple[str, bool], Record]) -> list[str]:
    any_record = next(iter(forms.values()))
    unfused, fused = (forms.get(("eager", form), {}) for form in (False, True))
    best = fastest(forms)
    accuracy = published(any_record)
    memory = fused.get("peak_memory_bytes")
    return [
        name,
        "x".join(map(str, any_record["input_size"][2:])),
        *(_count(record, key) for key in ("params", "macs") for record in (unfused, fused)),
        f"{accuracy.top1:.1f}" if accuracy else "",
        *(ms(record["p50_ms"]) if record else "" for record in (unfused, fused)),
        ms(best["p50_ms"]),
        best["runtime"],
        "" if memory is None else f"{memory / 2**20:.0f} MiB",
    ]


def fastest(forms: dict[tuple[str, bool], Record]) -> Record:
    """Return the record of the form of a model that took the least time."""
    return min(forms.values(), key=lambda record: record["p50_ms"])


def _count(record: Record, key: str) -> str:
    return quantity(record[key]) if record.get(key) is not None else ""


def _outdated(record: Record) -> bool:
    params = registry.get_spec(record["model"]).facts["params"]
    return not record["fused"] and record["params"] != params


def _check_checkout() -> None:
    if not RECORDS.parent.is_dir():
        raise BadInput(f"{ROOT} is no checkout of the project: there is no results/")
