"""`zoo predict`: classify or segment pictures, find objects in them, or find similar pictures."""

import argparse
import os
from pathlib import Path

from zoo.hub_files import is_repository

HELP = "classify, segment or find objects or similar pictures, with an artefact or a training run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "artefact", help="a file written by export.py, or its folder; or a run or a checkpoint"
    )
    parser.add_argument("images", nargs="+", help="pictures, or folders of them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--top", type=int, default=5, help="classes or similar pictures to print")
    parser.add_argument("--batch", type=int, default=8, help="pictures per call")
    parser.add_argument(
        "--gallery",
        nargs="+",
        help="pictures to search, or folders of them, with a retrieval model",
    )
    parser.add_argument("--out", help="folder for masks or drawn boxes; default: masks, detections")
    parser.add_argument(
        "--tta", default="none", help="flip: average with the mirrored picture; default: none"
    )
    parser.add_argument("--threads", type=int, help="default: all cores")


def run(args: argparse.Namespace) -> None:
    """Print the predictions.

    Raises:
        ZooError: The artefact or a picture cannot be read.
    """
    from zoo.deploy.predict import Predictor  # imports NumPy and Pillow
    from zoo.deploy.predict_files import print_predictions

    if _is_artefact(args.artefact):
        predictor = Predictor(args.artefact, args.threads, tta=args.tta)
    else:
        from zoo.commands.checkpoint_predictor import CheckpointModel  # imports PyTorch

        predictor = Predictor(CheckpointModel(args.artefact, args.threads), tta=args.tta)
    print_predictions(
        predictor,
        args.images,
        as_json=args.json,
        batch_size=args.batch,
        top=args.top,
        out=args.out,
        gallery=args.gallery,
    )


def _is_artefact(given: str) -> bool:
    """Return whether a path is an artefact rather than a run or a file of weights."""
    from zoo.deploy import files, formats, publishing

    if is_repository(given):
        return False
    path = Path(os.path.expanduser(given))
    if path.is_dir():
        names = (files.MANIFEST, publishing.PENDING)
        return not (path / "checkpoints").is_dir() or any((path / name).exists() for name in names)
    suffixes = [kind.suffix for kind in formats.FORMATS.values()]
    if not path.exists() or (path.parent / files.MANIFEST).exists():
        return True
    # TorchScript's suffix is also that of many checkpoints.
    return path.name.endswith(tuple(s for s in suffixes if s != ".pt")) or not path.name.endswith(
        WEIGHTS
    )


WEIGHTS = (".ckpt", ".pth", ".pt", ".tar", ".safetensors", ".bin")
