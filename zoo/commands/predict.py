"""`zoo predict`: classify or segment pictures with an artefact."""

import argparse

HELP = "classify or segment pictures with an artefact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("artefact", help="a file written by export.py, or its folder")
    parser.add_argument("images", nargs="+", help="pictures, or folders of them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--top", type=int, default=5, help="number of classes to print per picture")
    parser.add_argument("--batch", type=int, default=8, help="pictures per call")
    parser.add_argument("--out", help="folder for segmentation masks; default: masks")
    parser.add_argument("--threads", type=int, help="default: all cores")


def run(args: argparse.Namespace) -> None:
    """Print the predictions.

    Raises:
        ZooError: The artefact or a picture cannot be read.
    """
    from zoo.deploy.predict import command  # imports NumPy and Pillow

    command(args)
