"""`zoo list`: the names of models, or a table of them."""

import argparse
import re
from collections.abc import Callable
from typing import Any

from zoo import registry
from zoo.errors import BadInput, unknown_value
from zoo.quoting import command_line

HELP = "names of models, one per line; --long for a table with costs and accuracy"

_SORTS = ("name", "ms", "top1", "macs", "params")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("filter", nargs="*", help="globs, such as 'mobilenet*' or 'timm/resnet*'")
    parser.add_argument("--family", help="only variants of this family")
    parser.add_argument("--task", help="such as classification, segmentation or restoration")
    parser.add_argument("--pretrained", action="store_true", help="only with published weights")
    parser.add_argument(
        "--peers", action="store_true", help="also models of timm whose figures are recorded"
    )
    parser.add_argument("--long", action="store_true", help="a table with costs and accuracy")
    parser.add_argument(
        "--sort", default="name", metavar="KEY",
        help=f"{', '.join(_SORTS)}: the fastest, most accurate or smallest first",
    )  # fmt: skip
    parser.add_argument("--max-ms", metavar="MS", help="only with at most this measured latency")
    parser.add_argument(
        "--min-top1", metavar="PERCENT", help="only with at least this ImageNet-1k accuracy"
    )
    parser.add_argument(
        "--max-params", metavar="COUNT", help="only with at most this many parameters, such as 6M"
    )
    parser.add_argument(
        "--runtime", help="the runtime of --sort ms and --max-ms; default: the faster one"
    )


def run(args: argparse.Namespace) -> None:
    """Print the models that fit the arguments.

    Raises:
        ZooError: An argument is invalid, or no model fits.
    """
    from zoo.reports import figures

    if args.runtime is not None and args.runtime not in figures.runtimes():
        raise BadInput(unknown_value("--runtime", args.runtime, figures.runtimes()))
    if args.sort not in _SORTS:
        raise BadInput(unknown_value("--sort", args.sort, _SORTS))
    names = registry.list_models(
        args.filter,
        family=args.family,
        task=args.task,
        pretrained=True if args.pretrained else None,
        peers=args.peers,
    )
    if not names:
        raise BadInput(_no_match(args.filter))
    limits = _limits(args)
    names = [name for name in names if all(fits(name) for fits in limits)]
    if not names:
        raise BadInput("no model fits all of --max-ms, --min-top1 and --max-params; relax one")
    names.sort(key=_order(args.sort, args.runtime))
    if args.long:
        _print_table(names, args.runtime)
    else:
        print("\n".join(names))


def _no_match(globs: list[str]) -> str:
    asked = " ".join(map(repr, globs)) or "these options"
    for glob in globs:
        for wider in (glob.lower(), f"{glob.lower()}*", f"*{glob.lower()}*"):
            if found := registry.list_models(wider):
                plural = "" if len(found) == 1 else "s"
                return f"no model matches {asked}; {wider!r} matches {len(found)} model{plural}"
    return f"no model matches {asked}; `list` without arguments names all models"


def _limits(args: argparse.Namespace) -> list[Callable[[str], bool]]:
    """Return the conditions of --max-ms, --min-top1 and --max-params.

    A model whose figure is unknown does not fit.
    """
    from zoo.reports import figures

    limits: list[Callable[[str], bool]] = []
    if args.max_ms is not None:
        most_ms = _number("--max-ms", args.max_ms)
        limits.append(lambda n: (figures.of(n).latency(args.runtime) or 1e99) <= most_ms)
    if args.min_top1 is not None:
        least = _number("--min-top1", args.min_top1)
        limits.append(lambda n: (figures.imagenet_top1(n) or -1.0) >= least)
    if args.max_params is not None:
        most = _number("--max-params", args.max_params)
        limits.append(lambda n: _params(n) <= most)
    return limits


def _number(option: str, text: str) -> float:
    """Read a number, with `k`, `M` or `G` behind it if it is large.

    Raises:
        BadInput: It is not a number.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kMGmg]?)", text.strip())
    if not found or len(text) > 20:
        raise BadInput(f"{option}={text!r} is not a number such as 20, 75.5 or 6M")
    return float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()]


def _params(name: str) -> float:
    return registry.get_spec(name).facts.get("params", float("inf"))


def _order(key: str, runtime: str | None) -> Callable[[str], Any]:
    """Return the key to sort names by; models without the figure come last."""
    from zoo.reports import figures

    if key == "name":
        return lambda name: name
    values: dict[str, Callable[[str], float | None]] = {
        "ms": lambda name: figures.of(name).latency(runtime),
        "top1": lambda name: -(figures.imagenet_top1(name) or -1e9),
        "macs": lambda name: figures.of(name).macs,
        "params": _params,
    }

    def order(name: str) -> tuple[bool, float, str]:
        value = values[key](name)
        return (value is None, value or 0.0, name)

    return order


def _print_table(names: list[str], runtime: str | None) -> None:
    from zoo.display import ms
    from zoo.reports import figures
    from zoo.reports.table import Heading, fitted, print_all

    specs = [registry.get_spec(name) for name in names]
    known = [figures.of(name) for name in names]
    runtimes = [runtime] if runtime else figures.runtimes()
    tops = [figures.imagenet_top1(name) for name in names]
    accuracies = [
        figures.other_top1(name) if top is None else f"{top:.1f}"
        for name, top in zip(names, tops, strict=True)
    ]
    table, omitted = fitted(
        [
            Heading("model", names, right=False, folds=True),
            Heading("size", [_size(spec) for spec in specs], rank=3),
            Heading("params", [_or_empty(spec.facts.get("params")) for spec in specs], rank=1),
            Heading("MACs", [_or_empty(entry.macs) for entry in known], rank=1),
            Heading("top-1 %", accuracies, right=False),
            *(
                Heading(
                    name.replace("onnxruntime", "onnx-\nruntime") + "\nms",
                    [ms(entry.latency(name)) for entry in known],
                )
                for name in runtimes
            ),
            Heading("weights", [_weights(spec) for spec in specs], rank=2, right=False),
        ]
    )
    print_all(table)
    print_all(
        "MACs: counted, as trained, for one image of this size. top-1: the best published one, on "
        f"ImageNet-1k unless named. ms: median, fused, {figures.measured_on()}.",
        *([f"not shown for lack of width: {', '.join(omitted)}"] if omitted else []),
        f"{len(names)} models; more about one: {command_line('info', {}, names[0])}",
    )


def _or_empty(value: int | None) -> str:
    from zoo.display import quantity

    return "" if value is None else quantity(value)


def _size(spec: registry.ModelSpec) -> str:
    sides = spec.facts.get("input", {}).get("size", [])[1:]
    return str(sides[0]) if len(set(sides)) == 1 and len(sides) == 2 else "x".join(map(str, sides))


def _weights(spec: registry.ModelSpec) -> str:
    return "yes" if registry.is_pretrained(spec) else "by hand" if spec.weights else "no"
