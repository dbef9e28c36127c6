"""`zoo gate`: whether a new exported file is slower or less accurate than a baseline."""

import argparse
import math
from pathlib import Path

from zoo.errors import BadInput

HELP = "fail if an exported file is slower or less accurate than a baseline"
LOADS_PYTORCH = True  # which takes seconds: the command line says so first
FAILED = 3  # exit code; errors end with 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("baseline", help="a file that --save wrote, such as baseline.json")
    parser.add_argument("artefact", help="the new exported file, or its folder")
    parser.add_argument(
        "--slower", default="3%", metavar="PERCENT",
        help="by how much it may be slower; default: 3%%",
    )  # fmt: skip
    parser.add_argument(
        "--drop", metavar="POINTS",
        help="by how many points its score may be lower; needs `zoo eval artefact=...` of both",
    )  # fmt: skip
    parser.add_argument(
        "--save", action="store_true", help="write the baseline of this file instead"
    )
    parser.add_argument("--threads", default="1", help="threads per call, with --save; default: 1")


def run(args: argparse.Namespace) -> int:
    """Print the comparison as Markdown; return 0 if the new file passes, else 3.

    Raises:
        BadInput: An argument is invalid, or a file cannot be read.
    """
    from zoo.profiling import gate

    slower = gate.share("--slower", args.slower)
    drop = None if args.drop is None else _points(args.drop)
    baseline, artefact = Path(args.baseline), Path(args.artefact)
    if args.save:
        saved = gate.save(baseline, artefact, threads=_threads(args.threads))
        score = saved.score
        known = f"{score.name} {score.value:.2f} {score.unit}" if score else "not evaluated"
        print(f"saved {baseline}: {saved.artefact}, {saved.p50_ms:.3f} ms, {known}")
        return 0
    if args.threads != "1":
        raise BadInput("--threads has no effect without --save: the baseline states the threads")
    found = gate.gate(baseline, artefact, slower=slower, drop=drop)
    print(gate.markdown(found, baseline, artefact))
    return 0 if found.passed else FAILED


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise BadInput(f"--drop={text!r} is not a number of points such as 0.3")
    return value


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"--threads={text!r} is not a positive whole number")
    return int(text)
