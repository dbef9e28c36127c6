"""`zoo fit`: from a folder of images to a tested artefact and a page about it."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.settings import FitConfig

HELP = "train a classifier on a folder of images, export it, test it, and write a page about it"
MOST_LOST = 0.01  # top-1 that int8 may cost to be recommended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "photos", help="folder with a folder of images per class, or with train and val of those"
    )
    parser.add_argument(
        "--ms", help="largest latency of one image in ms: picks the model by measuring"
    )
    parser.add_argument("--model", help="the model, instead of --ms; default: mobilenetv2_100")
    parser.add_argument(
        "--weights", help="file of weights to start from; default: the published ones"
    )
    parser.add_argument("--size", help="side of the image in pixels; default: that of the model")
    parser.add_argument("--epochs", help="default: 20 from published weights, otherwise 60")
    parser.add_argument(
        "--out", help="folder of all results; default: runs/fit/<name of the folder of images>"
    )


def run(args: argparse.Namespace) -> None:
    """Run the steps that are not done yet, and print the result.

    Raises:
        ZooError: An argument is invalid, or a step failed; the finished steps are kept.
    """
    fit(
        FitConfig(
            photos=args.photos,
            ms=None if args.ms is None else _number("--ms", args.ms),
            model=args.model,
            weights=args.weights,
            size=None if args.size is None else _whole("--size", args.size),
            epochs=None if args.epochs is None else _whole("--epochs", args.epochs),
            out=args.out,
        )
    )


def fit(settings: FitConfig) -> dict[str, Any]:
    """Run the steps that are not done yet in the folder `settings.out`.

    Args:
        settings: What the user gave.

    Returns:
        What each step found: the steps of `fit.json`.

    Raises:
        ZooError: A setting is invalid, or a step failed; the finished steps are kept.
        SystemExit: Ctrl-C or SIGTERM; the same command continues.
    """
    _check(settings)
    from zoo.commands import fit_steps
    from zoo.fitting import page, record
    from zoo.fitting.inspection import lines
    from zoo.quoting import command_line
    from zoo.reports.writing import replace_files
    from zoo.training.disk import sole_writer

    photos = Path(settings.photos).expanduser()
    folder = Path(settings.out or Path("runs/fit") / (photos.resolve().name or "photos"))
    folder = folder.expanduser()
    kept = record.FitRecord(folder, _request(settings))
    with sole_writer(folder):
        for number, (name, (words, step)) in enumerate(fit_steps.ALL.items(), start=1):
            if name in kept.steps:
                continue
            print(f"step {number} of {len(fit_steps.ALL)}: {words}", flush=True)
            try:
                kept.add(name, step(settings, folder, kept.steps))
            except (SystemExit, KeyboardInterrupt):
                print("the same command continues from here", file=sys.stderr)
                raise
            if name == "inspect":
                print("\n".join(lines(kept.steps[name])))
            if name == "choose":
                print("\n".join(_choice(kept.steps[name])))
    verdict = conclusion(kept.steps)
    replace_files({folder / page.NAME: page.render(kept.steps, folder, photos, verdict)})
    print("\n".join(verdict))
    print(f"page: {folder / page.NAME}")
    best = kept.steps["export" if recommended(kept.steps) == "float" else "int8"]["folder"]
    print(f"next: {command_line('predict', None, folder / best, 'photo.jpg')}")
    return kept.steps


def recommended(steps: dict[str, Any]) -> str:
    """Return the artefact to use: int8 if it is faster and costs at most `MOST_LOST` of top-1."""
    found, made = steps["evaluate"], steps["int8"]
    if "int8" not in found:
        return "float"
    tops = {form: found[form]["report"]["top1"]["value"] for form in ("float", "int8")}
    is_faster = made["latency"]["high"] < 1  # the whole interval of int8 over float
    return "int8" if is_faster and tops["float"] - tops["int8"] <= MOST_LOST else "float"


def conclusion(steps: dict[str, Any]) -> list[str]:
    """Return the result in sentences."""
    found, form = steps["evaluate"], recommended(steps)
    report = found[form]["report"]
    top1 = report["top1"]
    text = [
        f"{steps['choose']['model']}, {form}: top-1 {top1['value']:.2%}"
        f" [{top1['low']:.2%}, {top1['high']:.2%}], macro-F1 {report['macro_f1']:.2%} on"
        f" {report['images']} images that were held out",
        f"use {found[form]['artefact']}, {found[form]['bytes'] / 1e6:.2f} MB",
    ]
    most = max(report["classes"], key=lambda row: row["n"])
    if report["images"] and top1["value"] <= most["n"] / report["images"]:
        text[1:] = [
            f"do not use it: always answering {most['class']} is right for"
            f" {most['n'] / report['images']:.2%} of these images; start from published weights,"
            " train longer, or add images"
        ]
    if form == "float" and "int8" in found:
        other = found["int8"]["report"]["top1"]["value"]
        ratio = steps["int8"]["latency"]["ratio"]
        text.append(
            f"int8 has top-1 {other:.2%} and takes {ratio:.2f} times as long on this machine"
        )
    if "error" in steps["int8"]:
        text.append(f"int8 failed: {steps['int8']['error']}")
    if steps["choose"]["weights"] == "none":
        text.append(f"trained from random weights: {steps['choose']['reason']}")
    if doubted := steps["labels"]["doubted"]:
        first = steps["labels"]["first"][0]
        text.append(
            f"{doubted} labels are in doubt, first {first['file']}: {first['class']}, or"
            f" {first['suggested']}? The list: {steps['labels']['file']}"
        )
    return text


def _choice(chosen: dict[str, Any]) -> list[str]:
    start = {"published": "the published weights", "none": "random weights"}
    named = start.get(chosen["weights"], chosen["weights"])
    text = [
        f"{chosen['model']} at {chosen['image_size']} pixels, from {named},"
        f" {chosen['epochs']} epochs"
    ]
    if chosen["reason"]:
        text.append(
            f"the published weights cannot be used: {chosen['reason']}; --weights <file> takes a"
            " file of weights"
        )
    return text


def _request(settings: FitConfig) -> dict[str, Any]:
    """Return what decides the result, to notice another command in the same folder."""
    return {
        "photos": os.path.realpath(Path(settings.photos).expanduser()),
        "ms": settings.ms,
        "model": settings.model,
        "weights": settings.weights,
        "size": settings.size,
        "epochs": settings.epochs,
    }


def _check(settings: FitConfig) -> None:
    if not Path(settings.photos).expanduser().is_dir():
        raise BadInput(
            f"{settings.photos} is not a folder; give the folder that has a folder of images per"
            " class"
        )
    if settings.ms is not None and settings.model is not None:
        raise BadInput("--ms picks a model and --model names one; give one of them")
    if settings.ms is not None and settings.weights is not None:
        raise BadInput("--weights are those of one model: give --model instead of --ms")
    if settings.ms is not None and settings.size is not None:
        raise BadInput("--ms picks the size with the model; leave --size out")
    for option, value in (
        ("--ms", settings.ms),
        ("--size", settings.size),
        ("--epochs", settings.epochs),
    ):
        if value is not None and not value > 0:
            raise BadInput(f"{option} {value} must be above 0")
    if settings.weights is not None and not Path(settings.weights).expanduser().exists():
        raise BadInput(f"--weights {settings.weights} does not exist; give a file of weights")


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{option} {text!r} is not a number such as 10") from None


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadInput(f"{option} {text!r} is not a whole number") from None
