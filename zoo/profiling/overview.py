"""Every finished model measured once: the tables of `results/` and of the README.

`python -m zoo results` measures what is missing on this machine and writes both; with `--write` it
only writes them anew. The records are `results/models.jsonl`, one line a model and runtime.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import BadInput
from zoo.profiling.changes import describe
from zoo.profiling.markdown import Markup, escape, grid, ms
from zoo.profiling.pareto import published
from zoo.profiling.plan import Plan
from zoo.profiling.records import Record, case_key, load, read
from zoo.profiling.sweep import Work, sweep
from zoo.profiling.table import quantity

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "results" / "models.jsonl"
TABLE = ROOT / "results" / "README.md"
README = ROOT / "README.md"
BEGIN = "<!-- models: written by `python -m zoo results`, do not edit -->"
END = "<!-- end of models -->"

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


def plan() -> Plan:
    """Return what is measured: every finished model, one image of its own size, on one core."""
    settings = {
        "threads": 1,  # so that figures do not hang on how many cores are free
        "dtype": "float32",
        "channels_last": False,
        **EFFORT,
    }
    return Plan(finished(), {}, [None], list(FORMS), [1], settings)


def measure_and_write() -> None:
    """Measure what `results/` lacks, then write the tables; interrupted, it goes on next time.

    Records of other machines, versions and of models that have changed since are dropped.

    Raises:
        ZooError: A model could not be measured; the tables say which figures are missing.
    """
    _check_checkout()
    asked = plan()
    prune(RECORDS, asked)
    try:
        sweep(asked, RECORDS)
    finally:
        if RECORDS.exists():
            write()


def write() -> None:
    """Write the tables from the records.

    Raises:
        BadInput: There are no records, or no place in the README for the table.
    """
    _check_checkout()
    records = load(RECORDS)
    TABLE.write_text(results_table(records), encoding="utf-8")
    README.write_text(
        with_table(README.read_text(encoding="utf-8"), readme_table(records)), encoding="utf-8"
    )
    for file in (TABLE, README):
        print(f"wrote {file.relative_to(ROOT)}")


def prune(path: Path, asked: Plan) -> None:
    """Drop the records that `asked` does not ask for, or that are of a model as it was before."""
    if not path.exists():
        return
    work = Work(asked)
    wanted = {case_key(work.identity(case)) for case in work.cases}
    kept = [r for r in read(path) if case_key(r) in wanted and not _outdated(r)]
    draft = path.with_suffix(".partial")
    draft.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), "utf-8")
    draft.replace(path)


def results_table(records: Sequence[Record]) -> str:
    """Return `results/README.md`: a row for each model, and what it was measured on."""
    head = ["model", "input", "params", "fused", "MACs", "fused", "top-1"]
    head += ["eager ms", "fused", "best ms", "in", "memory"]
    rows = [_model_row(name, forms) for name, forms in by_model(records).items()]
    dates = sorted(record["date"][:10] for record in records)
    first = records[0]
    about = (
        f"{len(rows)} models, one image of each model's own size, {first['threads']} threads, "
        f"{first['dtype']}; measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )
    machines = [f"- {escape(text)}" for text in dict.fromkeys(map(describe, records))]
    parts = ["# Results", _ABOUT, about, "\n".join(machines), grid(head, rows), _MEANING]
    return "\n\n".join(parts) + "\n"


def readme_table(records: Sequence[Record]) -> str:
    """Return the table of the README: a row for each family."""
    models = by_model(records)
    families: dict[str, list[str]] = {}
    for name in models:
        families.setdefault(registry.get_spec(name).family, []).append(name)
    head = ["family", "variants", "params", "MACs", "top-1", "time of a call", "weights"]
    head += ["takes", "paper"]
    rows = [_family_row(family, names, models) for family, names in sorted(families.items())]
    machine = describe(records[0]).split(", ")
    threads = records[0]["threads"]
    after = (
        f"{len(models)} models in {len(rows)} families; every one of them, with its figures: "
        "[results/](results/README.md). MACs are of one image of the model's own size, "
        "re-parameterised; the time is the median in the fastest runtime measured, on "
        f"{threads} threads of {escape(', '.join(machine[:2]))}. Top-1 is the best published on "
        "ImageNet-1k. Weights: how many variants have published ones that are fetched by name."
    )
    return f"{grid(head, rows)}\n\n{after}"


def with_table(text: str, table: str) -> str:
    """Return the README with `table` in its place.

    Raises:
        BadInput: The two comments that it belongs between are missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BadInput(f"README.md has no place for the table: it goes between {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def by_model(records: Sequence[Record]) -> dict[str, dict[tuple[str, bool], Record]]:
    """Return the records of each model that there still is, by runtime and whether fused."""
    found: dict[str, dict[tuple[str, bool], Record]] = {}
    for record in records:
        found.setdefault(record["model"], {})[record["runtime"], record["fused"]] = record
    return {name: found[name] for name in sorted(found) if registry.is_packaged(name)}


def _model_row(name: str, forms: dict[tuple[str, bool], Record]) -> list[str]:
    any_record = next(iter(forms.values()))
    unfused, fused = (forms.get(("eager", form), {}) for form in (False, True))
    best = _best(forms)
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


def _family_row(
    family: str, names: list[str], models: dict[str, dict[tuple[str, bool], Record]]
) -> list[str]:
    fused = [models[name].get(("eager", True), {}) for name in names]
    facts = [registry.model_info(name) for name in names]
    tops = [a.top1 for name in names if (a := published({"model": name}))]
    times = [_best(models[name])["p50_ms"] for name in names]
    pretrained = sum(registry.is_pretrained(registry.get_spec(name)) for name in names)
    return [
        family,
        str(len(names)),
        _range([fact["params"] for fact in facts]),
        _range([record["macs"] for record in fused if record.get("macs") is not None]),
        _span([f"{min(tops):.1f}", f"{max(tops):.1f}"]) if tops else "",
        f"{_span([ms(min(times)), ms(max(times))])} ms",
        f"{pretrained} of {len(names)}",
        ", ".join(_abilities(facts)),
        _papers(facts),
    ]


# What facts state, in words; what every model can (features, onnx) goes without saying.
_WORDS = {"dynamic_size": "any size", "reparam": "fusing", "distilled": "two heads"}


def _abilities(facts: list[dict[str, Any]]) -> list[str]:
    """Say what all variants can, and which tasks there are besides classification."""
    tasks = dict.fromkeys(fact["task"] for fact in facts if fact["task"] != "classification")
    shared = [
        word
        for key, word in _WORDS.items()
        if all(fact.get("capabilities", {}).get(key) is True for fact in facts)
    ]
    return [*tasks, *shared]


def _papers(facts: list[dict[str, Any]]) -> Markup:
    """Link the papers of a family."""
    links = {}
    for paper in (fact.get("paper") or {} for fact in facts):
        if "arxiv" in paper:
            links[f"[{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"] = None
        elif "url" in paper:
            links[f"[{paper.get('year', 'paper')}]({paper['url']})"] = None
    return Markup(", ".join(links))


def _best(forms: dict[tuple[str, bool], Record]) -> Record:
    return min(forms.values(), key=lambda record: record["p50_ms"])


def _range(values: list[int]) -> str:
    return _span([quantity(min(values)), quantity(max(values))]) if values else ""


def _span(ends: list[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _count(record: Record, key: str) -> str:
    return quantity(record[key]) if record.get(key) is not None else ""


def _outdated(record: Record) -> bool:
    params = registry.get_spec(record["model"]).facts["params"]
    return not record["fused"] and record["params"] != params


def _check_checkout() -> None:
    if not README.is_file() or not RECORDS.parent.is_dir():
        raise BadInput(f"{ROOT} is no checkout of the project: there is no README.md or results/")
