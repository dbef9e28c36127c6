"""`zoo count`: parameters, MACs, FLOPs and activations of a model and its modules."""

import argparse
import warnings
from typing import Any

from zoo import registry

HELP = "params, MACs, FLOPs and activations of a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="a registered name, or timm/<name>")
    parser.add_argument(
        "--size", type=int, nargs="+", help="image size: one number, or height and width"
    )
    parser.add_argument("--depth", type=int, default=1, help="depth to which modules are listed")
    parser.add_argument("--fused", action="store_true", help="count the re-parameterised model")


def run(args: argparse.Namespace) -> None:
    """Print the counts of a model and its modules.

    Raises:
        ZooError: The model is unknown, or cannot be counted at this size.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from zoo.counting.count import count  # imports torch, which takes seconds
    from zoo.factory import create_model
    from zoo.reparam import reparameterize

    model = create_model(args.model).eval()
    if args.fused:
        model = reparameterize(model)
    wanted: Any = {} if registry.is_timm(args.model) else registry.get_spec(args.model).facts
    channels, *size = wanted.get("input", {}).get("size", (3, 224, 224))
    size = [*args.size, args.size[-1]][:2] if args.size else size
    counts = count(model, (1, channels, *size))
    form = "fused" if counts.fused else "unfused"
    print(f"{args.model}, {form}, one image of {size[0]} x {size[1]}")
    for name, row in counts.by_module(args.depth).items():
        print(
            f"{name or 'total':<24}{row['params']:>14,} params{row['macs']:>18,} MACs"
            f"{row['flops']:>18,} FLOPs{row['activations']:>14,} activations"
        )
