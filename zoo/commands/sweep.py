"""`zoo sweep`: what of a sweep is finished, being trained or left, and the table so far."""

import argparse
from collections import Counter
from pathlib import Path

from zoo.errors import BadInput

HELP = "what of a sweep (train.sweep) is finished, being trained or left; the table so far"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="FOLDER", help="the train.sweep of zoo train")


def run(args: argparse.Namespace) -> None:
    """Print the state of each cell that is not finished, and the table; nothing is written.

    Raises:
        BadInput: The folder has no sweep, or a file in it is damaged.
    """
    from zoo.reports.table import print_all
    from zoo.sweeping.cells import cells_of
    from zoo.sweeping.lease import Claims
    from zoo.sweeping.table import page_of

    cells = cells_of(Path(args.folder))
    if not cells:
        raise BadInput(f"{args.folder} has no sweep; give the folder of train.sweep")
    claims = Claims()
    states = {
        cell: "finished" if cell.is_finished() else claims.state(cell.folder) for cell in cells
    }
    for cell, state in states.items():
        if state != "finished":
            print_all(f"{cell.setting}/{cell.name}: {state}")
    counts = Counter("taken" if s.startswith("taken") else s for s in states.values())
    print_all(", ".join(f"{number} {state}" for state, number in counts.items()), "")
    print_all(page_of(cells).rstrip())
