"""`zoo info`: the facts of one model."""

import argparse

from zoo import registry

HELP = "facts of a model: paper, figures, weights, licence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model")


def run(args: argparse.Namespace) -> None:
    """Print the facts of a model.

    Raises:
        UnknownModel: No such model.
    """
    import yaml

    print(
        yaml.safe_dump(registry.model_info(args.model), sort_keys=False, allow_unicode=True), end=""
    )
