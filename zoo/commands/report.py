"""`zoo report`: Markdown, CSV and one HTML page of records of measurements."""

import argparse
from pathlib import Path

HELP = "Markdown, CSV and one HTML page of records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("records", help="a file written by benchmark.py, or its folder")
    parser.add_argument("--out", help="the folder to write to; default: next to the records")


def run(args: argparse.Namespace) -> None:
    """Write the report and print the paths of its files.

    Raises:
        BadInput: The records cannot be read, or the report cannot be written.
    """
    from zoo.reports.report import write  # imports rich

    for file in write(Path(args.records), Path(args.out) if args.out else None):
        print(f"wrote {file}")
