"""`zoo pick`: the most accurate model that meets a latency on this machine."""

import argparse

from zoo.errors import BadInput
from zoo.settings import PickConfig

HELP = "the most accurate model that meets a latency on this machine, ours or timm's"
LOADS_PYTORCH = True  # which takes seconds: the command line says so first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--ms", required=True, help="largest median latency of one image in ms")
    parser.add_argument("--top1", help="least published ImageNet-1k accuracy in percent")
    parser.add_argument(
        "--runtime", nargs="+", default=[], metavar="NAME",
        help="runtimes to consider; default: those of onnxruntime and openvino that are installed",
    )  # fmt: skip
    parser.add_argument("--threads", default="1", help="threads per call; default: 1")
    parser.add_argument(
        "--size", nargs="+", default=[], metavar="PIXELS",
        help="sides of the image; default: all with a published accuracy",
    )  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="also consider int8 files")
    parser.add_argument(
        "--licence", nargs="+", default=[], metavar="GLOB",
        help="allowed licences of the weights, such as 'apache*' mit",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="FOLDER",
        help="your images, one folder per class: the finalists are ranked on them",
    )  # fmt: skip
    parser.add_argument("--finalists", help="how many to find; default: 1, and 3 with --data")
    parser.add_argument("--models", nargs="+", default=[], metavar="GLOB", help="only these models")
    parser.add_argument("--out", help="folder of the result, continued if it exists")


def run(args: argparse.Namespace) -> None:
    """Search, and print what was found.

    Raises:
        ZooError: An argument is invalid, or no candidate meets the latency.
    """
    from zoo.picking.pick import pick

    pick(
        PickConfig(
            ms=_number("--ms", args.ms),
            top1=None if args.top1 is None else _number("--top1", args.top1),
            runtime=args.runtime,
            threads=_whole("--threads", args.threads),
            size=[_whole("--size", side) for side in args.size],
            int8=args.int8,
            licence=args.licence,
            data=args.data,
            finalists=None if args.finalists is None else _whole("--finalists", args.finalists),
            models=args.models,
            out=args.out,
        )
    )


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{option}={text!r} is not a number such as 10") from None


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadInput(f"{option}={text!r} is not a whole number") from None
