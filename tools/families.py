"""The table of the README: a row for each family, from facts and what `results/` holds."""

import json
from collections.abc import Sequence
from typing import Any

from tools.overview import RECORDS, ROOT, by_model, fastest, finished
from zoo import registry
from zoo.errors import BadInput
from zoo.reports.changes import describe
from zoo.reports.markdown import Markup, grid
from zoo.reports.pareto import published
from zoo.reports.records import Record, read
from zoo.reports.table import quantity

COUNTS = ROOT / "results" / "counts.json"
README = ROOT / "README.md"
BEGIN = "<!-- models: written by `python -m zoo catalogue` or `results`, do not edit -->"
END = "<!-- end of models -->"

_HEAD = ["family", "variants", "params", "MACs", "top-1", "weights", "takes", "paper"]
_TIMES = ["ms", "fastest"]  # before the weights, once something was measured


def write() -> None:
    """Write the table of the README.

    Raises:
        BadInput: The README has no place for it.
    """
    README.write_text(with_table(README.read_text("utf-8"), readme_table(*kept())), "utf-8")
    print(f"wrote {README.relative_to(ROOT)}")


def kept() -> tuple[dict[str, dict[str, Any]], list[Record]]:
    """Return the counts and the records that the table is made of."""
    records = read(RECORDS) if RECORDS.exists() else []
    return json.loads(COUNTS.read_text("utf-8")), records


def readme_table(counts: dict[str, dict[str, Any]], records: Sequence[Record]) -> str:
    """Return the table of the README.

    Args:
        counts: Of each model its `macs`, as `results/counts.json` holds them.
        records: The latencies, as `results/models.jsonl` holds them; without any the table has no
            columns for them, and where one model has none, the cells of its family stay empty.
    """
    families: dict[str, list[str]] = {}
    for name in finished():
        families.setdefault(registry.get_spec(name).family, []).append(name)
    found = by_model(records)
    head = [*_HEAD[:5], *(_TIMES if found else ()), *_HEAD[5:]]
    rows = [_row(family, names, counts, found) for family, names in sorted(families.items())]
    after = (
        f"{len(finished())} models in {len(rows)} families; every one of them, with its figures: "
        "[docs/models.md](docs/models.md). MACs are of one image of the model's own size, as "
        "trained. Top-1 is the best published on ImageNet-1k. Weights: how many variants have "
        "published ones that are fetched by name."
    )
    if found:
        machines = "; ".join(dict.fromkeys(map(describe, records)))
        after += (
            " ms: median latency of one image, fused, in PyTorch on one core; fastest: in the "
            f"faster one of PyTorch and ONNX Runtime ({machines}); each model's own: "
            "[results/](results)."
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


def _row(
    family: str,
    names: list[str],
    counts: dict[str, dict[str, Any]],
    found: dict[str, dict[tuple[str, bool], Record]],
) -> list[str]:
    facts = [registry.model_info(name) for name in names]
    tops = [a.top1 for name in names if (a := published({"model": name}))]
    pretrained = sum(registry.is_pretrained(registry.get_spec(name)) for name in names)
    return [
        family,
        str(len(names)),
        _range([fact["params"] for fact in facts]),
        _range([counts[name]["macs"] for name in names]),
        _span([f"{min(tops):.1f}", f"{max(tops):.1f}"]) if tops else "",
        *(_latencies([found.get(name, {}) for name in names]) if found else ()),
        f"{pretrained} of {len(names)}",
        ", ".join(_abilities(facts)),
        _papers(facts),
    ]


def _latencies(models: list[dict[tuple[str, bool], Record]]) -> tuple[str, str]:
    """Return from where to where medians go: fused in PyTorch, and in what was the fastest."""
    if not all(("eager", True) in forms for forms in models):
        return "", ""
    eager = [forms["eager", True]["p50_ms"] for forms in models]
    best = [fastest(forms)["p50_ms"] for forms in models]
    return _from_to(eager), _from_to(best)


def _from_to(times: list[float]) -> str:
    """Return the least and the largest, in the three digits that a spread of a percent leaves."""
    return _span([f"{t:.3g}" if t < 999.5 else f"{t:.0f}" for t in (min(times), max(times))])


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


def _range(values: list[int]) -> str:
    return _span([quantity(min(values)), quantity(max(values))]) if values else ""


def _span(ends: list[str]) -> str:
    return " to ".join(dict.fromkeys(ends))
