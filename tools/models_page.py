"""`docs/models.md`: a row for each finished model, with published figures and our own."""

from collections.abc import Iterable
from typing import Any

from tools.counts import Counts
from tools.project import ROOT, families, finished
from zoo import registry
from zoo.display import quantity
from zoo.reports.markdown import Markup, escape, grid

FILE = ROOT / "docs" / "models.md"

_ABOUT = (
    "Written by `make generated` from [zoo/facts](../zoo/facts) and the counts in "
    "[results/counts.json](../results/counts.json); do not edit. Latency and memory: "
    "[results/](../results). Adding a model: [add_a_model.md](add_a_model.md)."
)
_MEANING = (
    "Parameters and MACs are those of the model as trained (not fused), MACs for one image of the "
    "size in the row. *Published* figures come from the sources; where ours differ by more than "
    "1 %, the reason is below the table. Top-1 is the best published accuracy on the data set of "
    "the model. Weights: *automatic* if `pretrained=True` downloads them, *manual* if a page "
    "offers them. Every model can be trained, counted, timed and exported to ONNX. The column "
    "*supports* lists `features` (a feature pyramid), `fused` (re-parameterisation), `onnx` and "
    "`any size` (images of other sizes). Quirks are oddities of the public code: *kept*, so that "
    "published weights give the published outputs, or *changed*, with the reason."
)
_HEAD = ["model", "paper", "year", "published params", "params", "published MACs", "MACs", "top-1"]
_HEAD += ["top-1 source", "code licence", "weights licence", "weights", "input size", "supports"]
_HEAD += ["quirks"]
_SUPPORTS = {"features": "features", "reparam": "fused", "onnx": "onnx", "dynamic_size": "any size"}


def render(counts: Counts) -> str:
    """Return the text of the page.

    Args:
        counts: Of every finished model.
    """
    groups = families()
    parts = ["# Models", _ABOUT, f"{len(finished())} models in {len(groups)} families.", _MEANING]
    for family, names in groups.items():
        parts += _section(family, [registry.model_info(name) for name in names], counts)
    return "\n\n".join(parts) + "\n"


def _section(family: str, models: list[dict[str, Any]], counts: Counts) -> list[str]:
    parts = [f"## {family}"]
    for title, paper in {m["paper"]["title"]: m["paper"] for m in models}.items():
        parts.append(f"{escape(title)} ({_paper(paper)}, {paper['year']})")
    parts.append(grid(_HEAD, [_row(model, counts[model["name"]]["macs"]) for model in models]))
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


def _row(model: dict[str, Any], macs: int) -> list[str]:
    accuracy = _accuracy(model)
    return [
        model["name"],
        Markup(_paper(model["paper"])),
        str(model["paper"]["year"]),
        _published(model, "params_m", "kM"),
        quantity(model["params"]),
        _published(model, "macs_g", "MG"),
        quantity(macs),
        *accuracy,
        Markup(f"[{escape(model['code']['licence'])}]({model['code']['url']})"),
        _joined(entry.get("licence", "not stated") for entry in model.get("weights", [])),
        _where(model.get("weights", [])),
        sizes(model),
        ", ".join(word for key, word in _SUPPORTS.items() if model["capabilities"].get(key)),
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
