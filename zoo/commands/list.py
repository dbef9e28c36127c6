"""`zoo list`: the names of models, or a table of them."""

import argparse

from zoo import registry
from zoo.errors import ZooError

HELP = "names of models, one per line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("filter", nargs="*", help="globs, such as 'mobilenet*'")
    parser.add_argument("--family")
    parser.add_argument("--task")
    parser.add_argument("--pretrained", action="store_true", help="only with published weights")
    parser.add_argument("--long", action="store_true", help="with params, MACs and top-1")


def run(args: argparse.Namespace) -> None:
    """Print the models that fit the arguments.

    Raises:
        ZooError: No model fits.
    """
    names = registry.list_models(
        args.filter,
        family=args.family,
        task=args.task,
        pretrained=True if args.pretrained else None,
    )
    if not names:
        raise ZooError(f"no model matches {' '.join(args.filter) or 'these options'}")
    for name in names:
        print(_row(name) if args.long else name)


def _row(name: str) -> str:
    facts = registry.get_spec(name).facts
    best = max((entry.get("top1", 0) for entry in facts.get("published", [])), default=0)
    macs = next((e["macs_g"] for e in facts.get("published", []) if "macs_g" in e), None)
    return (
        f"{name:<32}{facts['params'] / 1e6:>9.2f} M"
        + (f"{macs:>9.3f} GMACs" if macs else f"{'':>15}")
        + (f"{best:>9.2f} top-1" if best else "")
    )
