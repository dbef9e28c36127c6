"""`zoo info`: what is known about one model, on one page."""

import argparse
from collections.abc import Iterator
from typing import Any

from zoo import registry
from zoo.quoting import command_line

HELP = "one model: paper, figures, latency, weights, licence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model")
    parser.add_argument("--yaml", action="store_true", help="print the facts as YAML")


def run(args: argparse.Namespace) -> None:
    """Print the facts of a model.

    Raises:
        UnknownModel: No such model.
    """
    facts = registry.model_info(args.model)
    if args.yaml:
        import yaml

        print(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), end="")
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in _lines(facts):
        grid.add_row(_plain(label), _plain(text))
    console = Console(highlight=False)
    console.print(grid)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the lines of the page: a label, which is empty on further lines, and a text."""
    from zoo.display import quantity
    from zoo.reports import figures

    name, known = facts["name"], figures.of(facts["name"])
    yield "model", f"{name} (family {facts['family']})"
    yield from _labelled("paper", _paper(facts.get("paper") or {}))
    classes = facts.get("num_classes", 1000 if facts["task"] == "classification" else None)
    yield "task", facts["task"] + (f", {classes} classes" if classes else "")
    yield from _labelled("image", _image(facts.get("input") or {}))
    if "params" in facts:
        yield "params", quantity(facts["params"])
    if known.macs is not None:
        yield "MACs", f"{quantity(known.macs)}, counted for one image of this size"
    yield from _labelled("latency", _latencies(known))
    yield from _labelled("published", [_published(row) for row in facts.get("published", [])])
    yield from _labelled("weights", _weights(facts.get("weights", [])))
    yield from _labelled("verified", _verified(name))
    code = facts.get("code") or {}
    yield from _labelled(
        "code", [f"{code['url']}, {code.get('licence', 'licence unknown')}"] if code else []
    )
    supports = [key for key, value in (facts.get("capabilities") or {}).items() if value is True]
    yield from _labelled("supports", [", ".join(supports)] if supports else [])
    yield from _labelled("quirks", [_quirk(entry) for entry in facts.get("quirks") or []])
    yield "next", command_line("benchmark", {"model": name})


def _labelled(label: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(texts):
        yield ("" if number else label), text


def _paper(paper: dict[str, Any]) -> list[str]:
    if not paper:
        return []
    title = str(paper.get("title", "")) + (f" ({paper['year']})" if "year" in paper else "")
    url = f"https://arxiv.org/abs/{paper['arxiv']}" if "arxiv" in paper else paper.get("url", "")
    return [text for text in (title, url) if text]


def _image(taken: dict[str, Any]) -> list[str]:
    if not taken.get("size"):
        return []
    channels, *sides = taken["size"]
    text = f"{' x '.join(map(str, sides))}, {channels} channel{'' if channels == 1 else 's'}"
    if "multiple" in taken:
        text += f"; other sizes: multiples of {taken['multiple']}"
    if "interpolation" in taken:
        text += f"; {taken['interpolation']}, crop {taken.get('crop_pct', 1.0):g}"
    return [text]


def _latencies(known: Any) -> list[str]:
    from zoo.display import ms
    from zoo.reports import figures
    from zoo.reports.claims import plus_minus

    found = [
        f"{runtime} {ms(values[0])} ms {plus_minus(*values)}".strip()
        for runtime, values in known.ms.items()
    ]
    about = f"(median and 95 % interval, fused, {figures.measured_on()})"
    return [", ".join(found), about] if found else []


_WORDS = {"top1": "top-1", "params_m": "params", "macs_g": "MACs", "miou": "mean IoU"}
_UNITS = {"params_m": " M", "macs_g": " G", "top1": " %", "miou": " %"}


def _published(row: dict[str, Any]) -> str:
    """Return the figures of one source, and why ours differ."""
    figures = [
        f"{_WORDS.get(key, key)} {value:g}{_UNITS.get(key, '')}"
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    whys = [f"{_WORDS.get(key, key)}: {why}" for key, why in (row.get("why") or {}).items()]
    text = f"{', '.join(figures)} ({row.get('source', 'source unknown')})"
    return "; ".join([text, *whys])


def _weights(entries: list[dict[str, Any]]) -> list[str]:
    """Return each file with its licence, and how to get it."""
    first = next((entry for entry in entries if "url" in entry), None)
    lines = []
    for entry in entries:
        address = entry.get("url") or entry.get("page") or "by hand"
        how = "pretrained=True" if entry is first else str(address)
        lines.append(
            f"{entry.get('tag', 'file')}: {entry.get('licence', 'licence not stated')}, {how}"
        )
    return lines or ["none published"]


def _verified(name: str) -> list[str]:
    """Return what the ledger says of each file; see `zoo.reports.ledger`."""
    from zoo.reports import ledger

    if not registry.is_packaged(name):
        return []
    return list(ledger.lines(registry.get_spec(name), ledger.entries()))


def _quirk(entry: dict[str, Any]) -> str:
    kind = next(key for key in entry if key != "why")
    return f"{kind}: {entry[kind]}; {entry.get('why', '')}".rstrip("; ")
