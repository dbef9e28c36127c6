"""`docs/models.md`: every finished model in a row, with what is published of it and what is ours.

`python -m zoo catalogue` writes it, and the table of the README (tools/families.py), from
`zoo/facts` and from `results/counts.json`, which holds the multiply-accumulates of each model at
its own size. It counts the models that the file lacks, or holds with another number of parameters
or size; all are counted anew where there is no file.
"""

import json
from collections.abc import Iterable
from typing import Any

from tools import families
from tools.overview import ROOT, finished
from zoo import registry
from zoo.errors import BadInput
from zoo.reports.markdown import Markup, escape, grid
from zoo.reports.table import quantity

COUNTS = families.COUNTS
PAGE = ROOT / "docs" / "models.md"

_ABOUT = (
    "Written by `python -m zoo catalogue` from [zoo/facts](../zoo/facts) and from the counts in "
    "[results/counts.json](../results/counts.json); do not edit. Latency and memory: "
    "[results/](../results). How to add one: [add_a_model.md](add_a_model.md)."
)
_MEANING = (
    "Params and MACs are those of one image of the size that stands in the row, as trained (not "
    "fused). *Published* are the figures of the sources, *ours* are counted (params by the tests "
    "as well); where they differ by more than 1 %, the reason stands below the table. Top-1 is the "
    "best published one, on the data set that the model was made for. Every model can be trained, "
    "counted, timed and exported to ONNX; the column *can* says so: `features` (a pyramid of "
    "maps), `fused` (re-parameterised), `onnx`, `any size` (images of sides that it was not made "
    "for). Quirks are what is odd in the public code: *kept*, so that published weights give the "
    "published outputs, or *changed*, with the reason."
)
_HEAD = ["model", "paper", "year", "params published", "ours", "MACs published", "ours", "top-1"]
_HEAD += ["source of top-1", "licence of code", "of weights", "weights", "takes", "can", "quirks"]
_CAN = {"features": "features", "reparam": "fused", "onnx": "onnx", "dynamic_size": "any size"}


def write() -> None:
    """Count what is not counted yet, then write the counts and the page.

    Raises:
        BadInput: The package does not lie in a checkout of the project.
    """
    if not PAGE.parent.is_dir() or not COUNTS.parent.is_dir():
        raise BadInput(f"{ROOT} is no checkout of the project: there is no docs/ or results/")
    counts = up_to_date(json.loads(COUNTS.read_text("utf-8")) if COUNTS.exists() else {})
    rows = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(counts.items()))
    COUNTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
    PAGE.write_text(page(counts), "utf-8")
    for file in (COUNTS, PAGE):
        print(f"wrote {file.relative_to(ROOT)}")
    families.write()


def up_to_date(counts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the counts of all finished models: those of `counts` that still hold, and new ones.

    Args:
        counts: Of each model its `params`, `macs` and `input` (channels and sides in pixels).
    """
    found = {}
    for name in finished():
        facts = registry.get_spec(name).facts
        same = {"params": facts["params"], "input": facts["input"]["size"]}
        entry = counts.get(name, {})
        found[name] = entry if same.items() <= entry.items() else count_model(name)
    return found


def count_model(name: str) -> dict[str, Any]:
    """Count one model as published, for one image of its own size."""
    from zoo.counting.count import count
    from zoo.factory import create_model

    size = registry.get_spec(name).facts["input"]["size"]
    counted = count(create_model(name).eval(), (1, *size))
    return {"params": counted.params, "macs": counted.macs, "input": size}


def page(counts: dict[str, dict[str, Any]]) -> str:
    """Return the text of `docs/models.md`.

    Args:
        counts: As `up_to_date` returns them.
    """
    families: dict[str, list[str]] = {}
    for name in finished():
        families.setdefault(registry.get_spec(name).family, []).append(name)
    parts = ["# Models", _ABOUT, f"{len(finished())} models in {len(families)} families.", _MEANING]
    for family, names in sorted(families.items()):
        parts += _section(family, [registry.model_info(name) for name in names], counts)
    return "\n\n".join(parts) + "\n"


def _section(family: str, models: list[dict[str, Any]], counts: dict[str, Any]) -> list[str]:
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
        ", ".join(word for key, word in _CAN.items() if model["capabilities"].get(key)),
        Markup(f"[{len(model['quirks'])}](#quirks-of-{model['family']})")
        if model["quirks"]
        else "none",
    ]


def sizes(model: dict[str, Any]) -> str:
    """Say which images a model takes: the size it was made for, and what else.

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
    """Write figures with the digits that they have, those below 1 in the first, smaller unit."""
    figures = [row[key] for row in model["published"] if key in row]
    return _joined(f"{x:g} {units[1]}" if x >= 1 else f"{1000 * x:g} {units[0]}" for x in figures)


def _accuracy(model: dict[str, Any]) -> tuple[str, str]:
    """Return the best published figure and its source; mean IoU where that is what is measured."""
    for key, unit in (("top1", ""), ("miou", " mIoU")):
        entries = [row for row in model["published"] if key in row]
        if entries:
            best = max(entries, key=lambda row: row[key])
            return f"{best[key]:g}{unit}", best["source"]
    return "", ""


def _where(weights: list[dict[str, Any]]) -> str:
    if any("url" in entry for entry in weights):
        return "fetched"
    return "on a page" if weights else "none"


def _reasons(models: list[dict[str, Any]]) -> list[str]:
    """List the reasons why figures differ, each once, with the models it is of."""
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
