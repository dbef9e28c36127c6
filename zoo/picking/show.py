"""What `zoo pick` shows: a table, a picture of the front, and the next commands."""

from pathlib import Path
from typing import Any

from zoo import registry
from zoo.display import ms
from zoo.inputs import published_input
from zoo.picking.candidates import FORMATS
from zoo.quoting import command_line, program
from zoo.reports.claims import plus_minus
from zoo.reports.pareto import front
from zoo.reports.records import Record
from zoo.reports.table import Heading, fitted, print_all

PICTURE = "front"  # front.svg and front.png


def commands(winner: Record, data: str | None) -> list[str]:
    """Return how to train and export the winner on a folder of images."""
    side = winner["input_size"][-1]
    settings: dict[str, Any] = {
        "model": winner["model"],
        "model.pretrained": True,
        "data": "folder",
        "data.root": data or "photos",
    }
    if (published_input(winner["model"])["size"] or [3, side])[1] != side:
        settings["data.image_size"] = side
    lines = [command_line("train", settings)]
    if winner["runtime"] in FORMATS:
        words = [f"format={FORMATS[winner['runtime']]}"]
        words += ["quantize.int8=true"] if winner["dtype"] == "int8" else []
        # The name of the run is not known yet.
        lines.append(" ".join([program("export"), "weights=runs/<run>", *words]))
    return lines


def print_result(content: dict[str, Any], folder: Path) -> None:
    """Print the table of measured candidates, the winner and the commands."""
    budget, asked = content["asked"]["ms"], content["asked"]
    rows = sorted(content["measured"], key=lambda row: row["p50_ms"])
    winner = content["winner"]
    if rows:
        print_all(_table(rows, content, budget))
    count, total = len(rows), content["candidates"]
    notes = [
        f"{count} of {total} candidates measured, {asked['threads']} thread"
        f"{'' if asked['threads'] == 1 else 's'}, random weights (they do not affect the time)",
        "top-1: published on ImageNet-1k at this image size; of the float weights",
        *(f"not measured: {name}: {reason}" for name, reason in content["failed"].items()),
        *(
            f"not ranked on the images: {row['model']}: {row['probe_error']}"
            for row in content["finalists"]
            if "probe_error" in row
        ),
    ]
    if winner:
        interval = plus_minus(winner["p50_ms"], winner["low_ms"], winner["high_ms"])
        notes += [
            "",
            f"pick: {winner['model']} at {winner['input_size'][-1]} pixels in {_form(winner)}: "
            f"{ms(winner['p50_ms'])} ms {interval}, top-1 {winner['top1']:.1f} %, "
            f"weights {winner['licence']}",
            *(f"  {line}" for line in content["commands"]),
        ]
        if winner["dtype"] == "int8":
            notes.append("  the export measures what int8 costs in accuracy")
    print_all(*notes, f"record: {folder / 'pick.json'}; picture: {folder / PICTURE}.svg")


def _table(rows: list[Record], content: dict[str, Any], budget: float) -> Any:
    on_front = front([(row["p50_ms"], row["top1"]) for row in rows])
    probes = {_key(row): row.get("probe") for row in content["finalists"]}
    winner = content["winner"]
    verdicts = [
        "picked"
        if winner is not None and _key(row) == _key(winner)
        else ("too slow" if row["dropped"] or row["p50_ms"] > budget else "fits")
        for row in rows
    ]
    scores = [probes.get(_key(row)) for row in rows]
    return fitted(
        [
            Heading("model", [row["model"] for row in rows], right=False, folds=True),
            Heading("pixels", [str(row["input_size"][-1]) for row in rows]),
            Heading("runtime", [_form(row) for row in rows], right=False),
            Heading("ms", [ms(row["p50_ms"]) for row in rows]),
            Heading("95 %", [_interval(row) for row in rows], rank=2),
            Heading("top-1 %", [f"{row['top1']:.1f}" for row in rows]),
            Heading("yours %", list(map(_score, scores)), rank=1),
            Heading("front", ["*" if best else "" for best in on_front], rank=3),
            Heading("weights", [row["licence"] for row in rows], rank=4, right=False),
            Heading("", verdicts, right=False),
        ]
    )[0]


def draw(content: dict[str, Any], folder: Path) -> None:
    """Write the picture of accuracy over latency, as SVG and PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    rows, winner = content["measured"], content["winner"]
    points = [(row["p50_ms"], row["top1"]) for row in rows]
    best = sorted(point for point, chosen in zip(points, front(points), strict=True) if chosen)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.plot(*zip(*best, strict=True), color="#0072b2", linewidth=1, label="front")
    for name, colour, wanted in (("fits", "#0072b2", False), ("too slow", "#999999", True)):
        chosen = [
            p for p, row in zip(points, rows, strict=True) if _is_slow(row, content) == wanted
        ]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), color=colour, s=18, label=name, zorder=2)
    axes.axvline(content["asked"]["ms"], color="#d55e00", linewidth=1, linestyle="--")
    if winner:
        at = (winner["p50_ms"], winner["top1"])
        axes.annotate(_short(winner["model"]), at, (-6, 6), textcoords="offset points", ha="right")
    axes.set_xlabel("median latency of one image, in ms")
    axes.set_ylabel("published ImageNet-1k top-1, in %")
    cpu = content["machine"].get("cpu", "")
    axes.set_title(f"{cpu}, {content['asked']['threads']} threads", fontsize=9)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.legend(fontsize=8)
    for suffix in ("svg", "png"):
        figure.savefig(folder / f"{PICTURE}.{suffix}", dpi=150)


def _is_slow(row: Record, content: dict[str, Any]) -> bool:
    return row["dropped"] or row["p50_ms"] > content["asked"]["ms"]


def _short(name: str) -> str:
    return name.removeprefix(registry.TIMM).partition(".")[0]


def _form(row: Record) -> str:
    return f"{row['runtime']} int8" if row["dtype"] == "int8" else row["runtime"]


def _key(row: Record) -> tuple[Any, ...]:
    return row["model"], row["input_size"][-1], row["runtime"], row["dtype"]


def _score(probe: dict[str, Any] | None) -> str:
    return f"{probe['accuracy']:.1f} ±{probe['error']:.1f}" if probe else ""


def _interval(row: Record) -> str:
    return plus_minus(row["p50_ms"], row["low_ms"], row["high_ms"])
