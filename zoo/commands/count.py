"""`zoo count`: parameters, MACs, FLOPs and activations of a model and its modules."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import BadInput, BadWeights
from zoo.quoting import command_line

MAX_SIDE = 10**6  # pixels; the tensor of a larger image cannot even be described

HELP = "params, MACs, FLOPs and activations of a model, module by module"
LOADS_PYTORCH = True  # which takes seconds: the command line says so first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="a registered name, timm/<name>, or a run folder")
    parser.add_argument("--encoder", help="backbone of a decoder such as unet, or of a detector")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="SIDE",
        help="one number, or height and width (volumes: depth, height, width); default: its own",
    )  # fmt: skip
    parser.add_argument(
        "--depth", type=int, default=1, help="depth to which modules are listed; default: 1"
    )
    parser.add_argument("--fused", action="store_true", help="count the re-parameterised model")


def run(args: argparse.Namespace) -> None:
    """Print the counts of a model and its modules.

    Raises:
        ZooError: The model is unknown, or cannot be counted at this size.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from zoo.counting.count import count  # imports torch, which takes seconds
    from zoo.display import shape
    from zoo.factory import create_model
    from zoo.inputs import published_input
    from zoo.reparam import reparameterize
    from zoo.reports.table import Heading, fitted, print_all

    if args.depth < 0:
        raise BadInput(f"--depth={args.depth} is negative; 0 lists only the whole model")
    if Path(args.model).expanduser().exists():
        name, arguments, (channels, *own) = _of_run(args.model, args.encoder)
    else:
        registry.get_spec(args.model)  # raises for an unknown name
        name, arguments = args.model, {"name": args.model, "encoder": args.encoder}
        channels, *own = published_input(args.encoder or name)["size"] or (3, 224, 224)
    sides = _sides(name, args.size, own)
    model = create_model(**arguments).eval()
    if args.fused:
        model = reparameterize(model)
    counts = count(model, (1, channels, *sides))
    rows = counts.by_module(args.depth)
    table, omitted = fitted(
        [
            Heading("module", [_indented(name) for name in rows], right=False, folds=True),
            *(
                Heading(title, [f"{row[title.lower()]:,}" for row in rows.values()], rank)
                for title, rank in (("params", 0), ("MACs", 0), ("FLOPs", 1), ("activations", 2))
            ),
        ]
    )
    variant = "fused" if counts.fused else "unfused"
    encoder = {} if args.encoder is None else {"model.encoder": args.encoder}
    title = name + "".join(f" on {backbone}" for backbone in encoder.values())
    print_all(f"{title}, {variant}, one image of {shape(sides)}", table)
    if omitted:
        print_all(f"not shown for lack of width: {', '.join(omitted)}")
    weights = {} if name == args.model else {"model.checkpoint_path": args.model}
    print_all(f"to time it: {command_line('benchmark', {'model': name, **encoder, **weights})}")


def _of_run(source: str, encoder: str | None) -> tuple[str, dict[str, Any], list[int]]:
    """Return the name, the arguments and the image size C H W of the model of a run.

    Raises:
        ZooError: It is not a run of `zoo train` or `zoo prune`, or an encoder was given, too.
    """
    from zoo.commands.resolve import read_weights

    saved = read_weights(source)
    if not saved.is_run:
        raise BadWeights(f"{source} is not a run of zoo train; give the name of a model")
    if encoder is not None:
        raise BadInput(f"--encoder={encoder} has no effect on {source}, which states its own")
    return saved.model["name"], saved.model, list(saved.preprocessing["size"])


def _sides(model: str, asked: Sequence[int] | None, own: Sequence[int]) -> list[int]:
    """Return the sides of the image to count.

    Raises:
        BadInput: The model takes another number of sides.
    """
    if not asked:
        return list(own)
    sides = list(asked) * len(own) if len(asked) == 1 else list(asked)
    if len(sides) != len(own) or not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
        expected = "height and width" if len(own) == 2 else "depth, height and width"
        raise BadInput(
            f"--size {' '.join(map(str, asked))}: {model} takes one number, or {expected}, from 1 "
            f"to {MAX_SIDE:,}"
        )
    return sides


def _indented(name: str) -> str:
    """Return the last part of a module's name, indented by its depth."""
    if not name:
        return "total"
    *parents, own = name.split(".")
    return f"{'  ' * (len(parents) + 1)}{own}"
