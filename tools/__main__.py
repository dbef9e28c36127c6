"""Keep the generated files of the repository up to date: `python -m tools <command>`."""

import argparse
import sys
from collections.abc import Sequence

from tools import capabilities, generated, latencies, operators
from tools.project import finished
from zoo.deploy.formats import FORMATS
from zoo.errors import BadInput, ZooError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error is one line on stderr and exit code 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror}")
    except ZooError as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    commands = parser.add_subparsers(
        required=True, metavar="write | check | family | latencies | capabilities | operators"
    )
    command = commands.add_parser("write", help="write all generated files; measure nothing")
    command.set_defaults(run=lambda options: generated.write())

    command = commands.add_parser("check", help="fail if a generated file is out of date")
    command.set_defaults(run=lambda options: generated.check())

    command = commands.add_parser("family", help="write all generated files of a new family")
    command.add_argument("name", help="of zoo/facts/<name>.yaml")
    command.add_argument("--measure", action="store_true", help="latencies and exports, too")
    command.set_defaults(run=_family)

    command = commands.add_parser("latencies", help="measure models that have no latencies here")
    command.set_defaults(run=_latencies)

    command = commands.add_parser("capabilities", help="try exports, and write the page")
    command.add_argument("--models", nargs="+", help="default: the smallest of each family")
    command.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    modes = list(capabilities.MODES)
    command.add_argument("--modes", nargs="+", default=modes, choices=modes)
    command.set_defaults(run=_capabilities)

    command = commands.add_parser("operators", help="record what timm and torchvision execute")
    command.set_defaults(run=lambda options: operators.write())
    return parser


def _family(options: argparse.Namespace) -> None:
    if not options.name:
        raise BadInput("give the name of a family: make family NAME=<family>")
    generated.write_family(options.name, measure=options.measure)


def _latencies(options: argparse.Namespace) -> None:
    try:
        latencies.measure(finished())
    finally:  # an interrupted or failed measurement has stored others
        generated.write()


def _capabilities(options: argparse.Namespace) -> None:
    capabilities.measure(options.models, options.formats, options.modes)
    generated.write()


if __name__ == "__main__":
    sys.exit(main())
