"""The model table of the README, a row for each family, and the numbers in its opening."""

from collections.abc import Sequence
from typing import Any

from tools.counts import Counts
from tools.latencies import best, by_model
from tools.project import ROOT, families, finished
from tools.proofs import renumbered
from zoo import registry
from zoo.display import quantity
from zoo.errors import BadInput
from zoo.reports.changes import describe
from zoo.reports.markdown import Markup, grid
from zoo.reports.pareto import published
from zoo.reports.records import Record

FILE = ROOT / "README.md"
BEGIN = "<!-- models: written by `make generated`, do not edit -->"
END = "<!-- end of models -->"

_HEAD = ["family", "variants", "params", "MACs", "top-1", "PyTorch ms", "best ms", "weights"]
_HEAD += ["supports", "paper"]
NOT_MEASURED = "not measured"


def render(readme: str, counts: Counts, records: Sequence[Record]) -> str:
    """Return the README with the table between its two comments, and current numbers elsewhere.

    Raises:
        BadInput: One of the comments is missing or occurs twice.
    """
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or END in before:
        raise BadInput(
            f"README.md has no place for the model table: write {BEGIN} and {END} on lines of "
            "their own, once each"
        )
    return f"{renumbered(before)}{BEGIN}\n\n{table(counts, records)}\n\n{END}{renumbered(after)}"


def table(counts: Counts, records: Sequence[Record]) -> str:
    """Return the table and its explanation.

    Args:
        counts: Of every finished model.
        records: Latencies; a family without any is "not measured".
    """
    found = by_model(records)
    rows = [_row(family, names, counts, found) for family, names in families().items()]
    after = (
        f"{len(finished())} models in {len(rows)} families; figures of each model: "
        "[docs/models.md](docs/models.md). Params and MACs are those of the model as trained, MACs "
        "for one image of its own size. Top-1 is the best published accuracy on ImageNet-1k. "
        "Weights: how many variants have published weights that `pretrained=True` downloads. "
        "PyTorch ms: median latency of one image, fused, in PyTorch on one core; best ms: the "
        "lower of the PyTorch and ONNX Runtime latencies. Latencies of each model: "
        "[results/](results)."
    )
    if machines := dict.fromkeys(map(describe, records)):
        after += f" Measured on: {'; '.join(machines)}."
    return f"{grid(_HEAD, rows)}\n\n{after}"


def _row(
    family: str,
    names: list[str],
    counts: Counts,
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
        *_latencies([found.get(name, {}) for name in names]),
        f"{pretrained} of {len(names)}",
        ", ".join(_abilities(facts)),
        _papers(facts),
    ]


def _latencies(models: list[dict[tuple[str, bool], Record]]) -> tuple[str, str]:
    """Return the ranges of medians: fused in PyTorch, and in the fastest runtime."""
    measured = [forms for forms in models if ("eager", True) in forms]
    if not measured:
        return NOT_MEASURED, NOT_MEASURED
    part = "" if len(measured) == len(models) else f" ({len(measured)} of {len(models)})"
    eager = _times([forms["eager", True]["p50_ms"] for forms in measured])
    return eager + part, _times([best(forms)["p50_ms"] for forms in measured]) + part


def _times(times: list[float]) -> str:
    """Return the least and the largest with three digits, as medians are good to a percent."""
    return _span([f"{t:.3g}" if t < 999.5 else f"{t:.0f}" for t in (min(times), max(times))])


# Every model has features and exports to ONNX, so the table leaves these out.
_WORDS = {"dynamic_size": "any size", "reparam": "fusing", "distilled": "two heads"}


def _abilities(facts: list[dict[str, Any]]) -> list[str]:
    """List the tasks other than classification, and what all variants support."""
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
