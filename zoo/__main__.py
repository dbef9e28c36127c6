"""Commands that do not need Hydra: `python -m zoo <command>`; `--help` lists them.

`list` and `info` neither build a model nor import torch.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import ZooError


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
    commands = parser.add_subparsers(
        required=True,
        metavar="list | info | count | report | compare | predict",
    )

    command = commands.add_parser("list", help="names of models, one per line")
    command.add_argument("filter", nargs="*", help="globs, such as 'mobilenet*'")
    command.add_argument("--family")
    command.add_argument("--task")
    command.add_argument("--pretrained", action="store_true", help="only with published weights")
    command.add_argument("--long", action="store_true", help="with params, MACs and top-1")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="facts of a model: paper, figures, weights, licence")
    command.add_argument("model")
    command.set_defaults(run=_info)

    command = commands.add_parser("count", help="params, MACs, FLOPs and activations of a model")
    command.add_argument("model", help="a registered name, or timm/<name>")
    command.add_argument(
        "--size", type=int, nargs="+", help="image size: one number, or height and width"
    )
    command.add_argument("--depth", type=int, default=1, help="depth to which modules are listed")
    command.add_argument("--fused", action="store_true", help="count the re-parameterised model")
    command.set_defaults(run=_count)

    command = commands.add_parser("report", help="Markdown, CSV and one HTML page of records")
    command.add_argument("records", help="a file written by benchmark.py, or its folder")
    command.add_argument("--out", help="the folder to write to; default: next to the records")
    command.set_defaults(run=_report)

    command = commands.add_parser("compare", help="which measurements are faster or slower in B")
    command.add_argument("a", metavar="A", help="records of one machine or version")
    command.add_argument("b", metavar="B", help="records of another machine or version")
    command.set_defaults(run=_compare)

    command = commands.add_parser("predict", help="classify or segment pictures with an artefact")
    command.add_argument("artefact", help="a file written by export.py, or its folder")
    command.add_argument("images", nargs="+", help="pictures, or folders of them")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--top", type=int, default=5, help="number of classes to print per picture"
    )
    command.add_argument("--batch", type=int, default=8, help="pictures per call")
    command.add_argument("--out", help="folder for segmentation masks; default: masks")
    command.add_argument("--threads", type=int, help="default: all cores")
    command.set_defaults(run=_predict)
    return parser


def _list(args: argparse.Namespace) -> None:
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


def _info(args: argparse.Namespace) -> None:
    import yaml

    print(
        yaml.safe_dump(registry.model_info(args.model), sort_keys=False, allow_unicode=True), end=""
    )


def _count(args: argparse.Namespace) -> None:
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    from zoo.counting.count import count
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


def _report(args: argparse.Namespace) -> None:
    from zoo.reports.report import write

    for file in write(Path(args.records), Path(args.out) if args.out else None):
        print(f"wrote {file}")


def _compare(args: argparse.Namespace) -> None:
    from zoo.reports.changes import compare_files

    compare_files(Path(args.a), Path(args.b))


def _predict(args: argparse.Namespace) -> None:
    from zoo.deploy.predict import command

    command(args)


if __name__ == "__main__":
    sys.exit(main())
