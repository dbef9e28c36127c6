"""`zoo compare`: what is faster or slower in other records, or more accurate in other runs."""

import argparse
from pathlib import Path

from zoo.errors import BadInput

HELP = "what is faster or slower in the records B, or more accurate in the runs B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "a", metavar="A", help="records of one machine or version; a folder of runs"
    )
    parser.add_argument("b", metavar="B", help="records of another one; another folder of runs")
    parser.add_argument(
        "--change",
        nargs="+",
        default=[],
        metavar="KEY",
        help="runs: the settings that are compared, such as train.mixup or 'model.*'",
    )
    parser.add_argument(
        "--metric", help="runs: a metric of metrics.csv, such as loss; default: the task's score"
    )


def run(args: argparse.Namespace) -> None:
    """Print the comparison.

    Raises:
        BadInput: A file or run cannot be used, or the two have nothing to compare.
    """
    from zoo.training.run_groups import run_folders

    a, b = Path(args.a), Path(args.b)
    of_runs = [bool(run_folders(side)) for side in (a, b)]
    if of_runs[0] != of_runs[1]:
        with_runs, without = (a, b) if of_runs[0] else (b, a)
        raise BadInput(f"{with_runs} has training runs, but {without} has none; give two of a kind")
    if of_runs[0]:
        _compare_runs(a, b, args)
        return
    for option, value in (("--change", args.change), ("--metric", args.metric)):
        if value:
            raise BadInput(f"{option} is for folders of training runs; {a} has none")
    from zoo.reports.changes import compare_files  # imports rich

    compare_files(a, b)


def _compare_runs(a: Path, b: Path, args: argparse.Namespace) -> None:
    from zoo.reports.table import Heading, fitted, print_all  # imports rich
    from zoo.training.run_comparison import compare_runs

    found = compare_runs(a, b, changed=args.change, metric=args.metric)
    steps = [y - x for x, y in zip(found.a, found.b, strict=True)]
    columns = [Heading("seed", [*map(str, found.seeds), "mean"])]
    for title, values, sign in (
        ("A", found.a, False),
        ("B", found.b, False),
        ("B - A", steps, True),
    ):
        shown = [*values, sum(values) / len(values)]
        columns.append(Heading(title, [found.number(value, sign=sign) for value in shown]))
    names = (f"{name} = {folder}" for name, folder in (("A", a), ("B", b)))
    print_all(*names, *found.notes, fitted(columns)[0], found.sentence())
