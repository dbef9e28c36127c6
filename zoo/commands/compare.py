"""`zoo compare`: which measurements are faster or slower in a second file of records."""

import argparse
from pathlib import Path

HELP = "which measurements are faster or slower in B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("a", metavar="A", help="records of one machine or version")
    parser.add_argument("b", metavar="B", help="records of another machine or version")


def run(args: argparse.Namespace) -> None:
    """Print the comparison.

    Raises:
        BadInput: A file cannot be read, or the files have no case in common.
    """
    from zoo.reports.changes import compare_files  # imports rich

    compare_files(Path(args.a), Path(args.b))
