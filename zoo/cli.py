"""The command line: `zoo <command>`, `python -m zoo <command>`, and scripts such as `train.py`.

`main` is the entry of all of them. `train`, `eval`, `benchmark` and `export` take settings, which
Hydra composes; the other commands have options. Whatever goes wrong ends in one line. This module
imports a command only when it runs. Nothing in the package imports this module.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from zoo import __version__
from zoo.command_line import guard
from zoo.command_line.option_parser import OneLineParser
from zoo.errors import BadInput
from zoo.progress import phase
from zoo.quoting import program
from zoo.settings import RUNS


@dataclass(frozen=True)
class Command:
    """What the overview says about a command.

    Attributes:
        help: What the command does.
        example: Arguments of one example.
    """

    help: str
    example: str


COMMANDS = {
    "fit": Command("from a folder of photographs to a tested file", "photos --ms 10"),
    "train": Command("train a model", "model=mobilenetv2_100 data=folder data.root=photos"),
    "sweep": Command("what of many runs in one folder is finished", "runs/study"),
    "eval": Command("evaluate weights or an exported file", "weights=runs/<run>"),
    "export": Command("export, check and time a model", "weights=runs/<run> format=onnx"),
    "predict": Command("classify or segment pictures", "<exported file> photo.jpg"),
    "benchmark": Command("count and time models", "models=[emo_1m,mobilenetv2_100]"),
    "prune": Command("make a trained model faster", "weights=runs/<run> prune.latency_ms=6"),
    "store-logits": Command("store a teacher's predictions", "weights=runs/<run> epochs=30"),
    "report": Command("tables and a web page of measurements", "runs/<benchmark>"),
    "compare": Command(
        "which measurements are faster, or which runs better", "before.jsonl after.jsonl"
    ),
    "pick": Command("the most accurate model within a latency, measured", "--ms 10 --top1 75"),
    "gate": Command("fail if a file is slower or less accurate", "baseline.json <exported file>"),
    "list": Command("models by name", "'mobilenet*' --long"),
    "info": Command("paper, figures, weights and licence of a model", "mobilenetv2_100"),
    "weights": Command("where published weights are, and whether they fit", "mobilenetv2_100"),
    "verify": Command("run published weights, and record the result", "mobilenetv2_100"),
    "count": Command("parameters, MACs and activations", "mobilenetv2_100 --depth 2"),
    "score": Command("rank untrained networks", "mobilenetv2_100 emo_1m --size 64"),
    "push": Command("publish the model of a run on the Hugging Face hub", "runs/<run> owner/name"),
    "completion": Command("completion for bash, zsh or fish", "bash"),
}


def main(command: str | None = None) -> NoReturn:
    """Run the command line of this process, and exit with its code.

    Args:
        command: The command of a script such as `train.py`; None if the first argument names it.
    """
    words = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    sys.exit(execute(words))


def execute(words: Sequence[str]) -> int:
    """Run a command and return its exit code; an error is one line on stderr.

    Args:
        words: The command and its arguments, such as `["train", "model=emo_1m"]`.
    """
    return guard.run(lambda: _dispatch(list(words)))


def _dispatch(words: list[str]) -> int | None:
    if not words or words == ["help"] or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"zoo {__version__}")
        return 0
    if words[0] == "help":
        words = [words[1], "--help"]
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise BadInput(_unknown_command(name))
    if name in RUNS:
        return _run_settings_command(name, rest)
    if name == "completion":
        from zoo.command_line import completion

        completion.run(rest, {name: command.help for name, command in COMMANDS.items()})
        return 0
    return _run_options_command(name, rest)


def overview() -> str:
    """Return the list of commands with one example each."""
    lines = ["Efficient vision backbones: zoo <command> --help explains one command.", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<13}{command.help}", f"  {'':<13}  {program(name)} {command.example}"]
    return "\n".join(lines)


def _unknown_command(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown command {name!r}{hint} Commands: {', '.join(COMMANDS)}"


def parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command that has options."""
    module = importlib.import_module(f"zoo.commands.{command}")
    made = OneLineParser(prog=program(command), description=module.HELP, allow_abbrev=False)
    module.add_arguments(made)
    return made


def _run_options_command(name: str, words: list[str]) -> int | None:
    args = parser(name).parse_args(words)
    module = importlib.import_module(f"zoo.commands.{name}")
    if getattr(module, "LOADS_PYTORCH", False) and "torch" not in sys.modules:
        with phase(f"{name}: loading PyTorch"):
            importlib.import_module("torch")
    return module.run(args)


def _run_settings_command(name: str, words: list[str]) -> None:
    """Run a command that takes settings; Hydra's own flags and settings need Hydra's entry."""
    if "-h" in words or "--help" in words:
        from zoo.command_line import help as settings_help

        print(settings_help.text(name))
        return
    if not any(word.startswith(("-", "hydra.", "hydra/", "+hydra", "++hydra")) for word in words):
        from zoo.command_line import composition

        composition.run(name, words)
        return
    from zoo.command_line import hydra_entry

    hydra_entry.run(name, words)
