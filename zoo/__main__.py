"""Commands that do not need Hydra: `python -m zoo <command>`; `--help` lists them.

`list` and `info` neither build a model nor import torch.
"""

import argparse
import importlib
import sys

from zoo.errors import ZooError

COMMANDS = ("list", "info", "count", "report", "compare", "predict")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error is one line on stderr and exit code 1."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f"zoo.commands.{name}")
        command = commands.add_parser(name, help=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
