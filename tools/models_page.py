"""`docs/models.md`: a row for each finished model, with published figures and our own."""

from collections.abc import Iterable, Sequence
from typing import Any

from tools.counts import Counts
from tools.latencies import by_model
from tools.project import ROOT, families, finished
from tools.proofs import compared
from zoo import registry
from zoo.display import ms, quantity
from zoo.reports import ledger
from zoo.reports.markdown import Markup, escape, grid
from zoo.reports.pareto import front, published
from zoo.reports.records import Record

FILE = ROOT / "docs" / "models.md"

_ABOUT = (
    "Written by `make generated` from `zoo/facts` and the counts in "
    "`results/counts.json`; do not edit. Latency and memory: "
    "`results/`. Adding a model: [add_a_model.md](add_a_model.md)."
)
_MEANING = (
    "Parameters and MACs are those of the model as trained (not fused), MACs for one image of the "
    "size in the row. The ms are medians of the fused model on the machine of "
    "`results/`; each family is sorted by the lower one. *Published* figures come from "
    "the sources; where ours differ by more than "
    "1 %, the reason is below the table. Top-1 is the best published accuracy on the data set of "
    "the model. Weights: *automatic* if `pretrained=True` downloads them, *manual* if a page "
    "offers them. *Verified* is what `zoo verify` found with published weights: an accuracy, "
    "*outputs* for one picture only, or *never*. *Compared* says whether tests compare outputs "
    "with records of public code: those of this model, or of another one of the family. "
    "Every model can be trained, counted, timed and exported to ONNX. The column "
    "*supports* lists `features` (a feature pyramid), `fused` (re-parameterisation), `onnx` and "
    "`any size` (images of other sizes). Quirks are oddities of the public code: *kept*, so that "
    "published weights give the published outputs, or *changed*, with the reason."
)
_HEAD = [
    "model",
    "input size",
    "params",
    "MACs",
    "top-1",
    "PyTorch ms",
    "ONNX Runtime ms",
    "weights",
]
_HEAD += ["verified", "compared", "weights licence", "supports", "published params"]
_HEAD += ["published MACs", "top-1 source"]
_HEAD += ["paper", "year", "code licence", "quirks"]
_FRONT = (
    "No other model here has a higher published ImageNet-1k accuracy at the same or a lower "
    "latency. The latency is the lower one of the two runtimes. The same for limits of your own: "
    "`zoo list --long --sort ms --max-ms 20 --min-top1 75`."
)
_SUPPORTS = {"features": "features", "reparam": "fused", "onnx": "onnx", "dynamic_size": "any size"}


Latencies = dict[str, dict[tuple[str, bool], Record]]


def render(counts: Counts, records: Sequence[Record]) -> str:
    """Return the text of the page: the models of each family from fast to slow.

    Args:
        counts: Of every finished model.
        records: Latencies; a model without any has empty cells and comes last.
    """
    groups, found = families(), by_model(records)
    parts = ["# Models", _ABOUT, f"{len(finished())} models in {len(groups)} families.", _MEANING]
    parts += _fastest(found)
    for family, names in groups.items():
        ordered = sorted(names, key=lambda name: (_least(found.get(name, {})), name))
        parts += _section(family, [registry.model_info(name) for name in ordered], counts, found)
    return "\n\n".join(parts) + "\n"


def _least(forms: dict[tuple[str, bool], Record]) -> float:
    """Return the lowest latency of a fused model; infinity if it is not measured."""
    times = [record["p50_ms"] for (_, fused), record in forms.items() if fused]
    return min(times, default=float("inf"))


def _fastest(found: Latencies) -> list[str]:
    """Return a table of the models on the Pareto front of accuracy and latency."""
    rated = [
        (name, _least(found.get(name, {})), accuracy.top1)
        for name in finished()
        if (accuracy := published({"model": name})) and _least(found.get(name, {})) < float("inf")
    ]
    chosen = front([(latency, top1) for _, latency, top1 in rated])
    best = sorted(
        (row for row, on_front in zip(rated, chosen, strict=True) if on_front),
        key=lambda row: row[1],
    )
    rows = [
        [name, ms(latency), f"{top1:.1f}", quantity(registry.get_spec(name).facts["params"])]
        for name, latency, top1 in best
    ]
    head = ["model", "ms", "top-1", "params"]
    return ["## The most accurate ones for their latency", _FRONT, grid(head, rows)] if rows else []


def _section(
    family: str, models: list[dict[str, Any]], counts: Counts, found: Latencies
) -> list[str]:
    parts = [f"## {family}"]
    for title, paper in {m["paper"]["title"]: m["paper"] for m in models}.items():
        parts.append(f"{escape(title)} ({_paper(paper)}, {paper['year']})")
    rows = [
        _row(model, counts[model["name"]]["macs"], found.get(model["name"], {})) for model in models
    ]
    parts.append(grid(_HEAD, rows))
    if reasons := _reasons(models):
        parts += ["Where figures differ:", "\n".join(reasons)]
    quirks = models[0]["quirks"]
    assert all(model["quirks"] == quirks for model in models), "quirks are those of a family"
    if quirks:
        parts += [f"### Quirks of {family}", "\n".join(_quirk(quirk) for quirk in quirks)]
    if unfused := models[0].get("unfused"):
        rows = [f"- `{entry['part']}`: {escape(entry['why'])}." for entry in unfused]
        parts += ["Fusing leaves in place:", "\n".join(rows)]
    return parts


def _row(model: dict[str, Any], macs: int, forms: dict[tuple[str, bool], Record]) -> list[str]:
    top1, source = _accuracy(model)
    known = ledger.entries(own=False)
    return [
        model["name"],
        sizes(model),
        quantity(model["params"]),
        quantity(macs),
        top1,
        *(ms(forms.get((runtime, True), {}).get("p50_ms")) for runtime in ("eager", "onnxruntime")),
        _where(model.get("weights", [])),
        ledger.in_short(model["name"], known),
        compared(model["name"]),
        _joined(entry.get("licence", "not stated") for entry in model.get("weights", [])),
        ", ".join(word for key, word in _SUPPORTS.items() if model["capabilities"].get(key)),
        _published(model, "params_m", "kM"),
        _published(model, "macs_g", "MG"),
        source,
        Markup(_paper(model["paper"])),
        str(model["paper"]["year"]),
        Markup(f"[{escape(model['code']['licence'])}]({model['code']['url']})"),
        Markup(f"[{len(model['quirks'])}](#quirks-of-{model['family']})")
        if model["quirks"]
        else "none",
    ]


def sizes(model: dict[str, Any]) -> str:
    """Describe the image sizes that a model accepts: its own, and others.

    Args:
        model: Its facts, as `zoo.model_info` returns them.
    """
    sides, can = model["input"]["size"][1:], model["capabilities"]
    own = " x ".join(map(str, sides))
    if "multiple" in model["input"]:
        return f"{own}; multiples of {model['input']['multiple']}"
    least = max(can.get("smallest", 1), can.get("patch", 1))
    return f"{own}; any" + (f" from {least}" if least > 1 else "")


def _paper(paper: dict[str, Any]) -> str:
    return f"[{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})"


def _published(model: dict[str, Any], key: str, units: str) -> str:
    """Write figures with their published digits; those below 1 in the smaller, first unit."""
    figures = [row[key] for row in model["published"] if key in row]
    return _joined(f"{x:g} {units[1]}" if x >= 1 else f"{1000 * x:g} {units[0]}" for x in figures)


def _accuracy(model: dict[str, Any]) -> tuple[str, str]:
    """Return the best published top-1, or else mean IoU, and its source."""
    for key, unit in (("top1", ""), ("miou", " mIoU")):
        entries = [row for row in model["published"] if key in row]
        if entries:
            best = max(entries, key=lambda row: row[key])
            return f"{best[key]:g}{unit}", best["source"]
    return "", ""


def _where(weights: list[dict[str, Any]]) -> str:
    if any("url" in entry for entry in weights):
        return "automatic"
    return "manual" if weights else "none"


def _reasons(models: list[dict[str, Any]]) -> list[str]:
    """List each reason why figures differ once, with the models that it concerns."""
    found: dict[tuple[str, str], list[str]] = {}
    for model in models:
        rows = model["published"]
        for what, why in dict.fromkeys(pair for row in rows for pair in row.get("why", {}).items()):
            found.setdefault((what, why), []).append(model["name"])
    words = {"macs_g": "MACs", "params_m": "params"}
    return [
        f"- {words[what]} of {_names(names, len(models))}: {escape(why)}."
        for (what, why), names in found.items()
    ]


def _names(names: list[str], of: int) -> str:
    return "all" if len(names) == of > 1 else ", ".join(names)


def _quirk(quirk: dict[str, str]) -> str:
    kind = next(iter(quirk.keys() - {"why"}))
    return f"- *{kind}*: {quirk[kind]}; {quirk['why']}."


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
