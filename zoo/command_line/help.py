"""Explain every setting: the comments of the dataclasses in `zoo.settings`, with their defaults.

`zoo train --help` prints `text`. `make generated` writes `page` to docs/configuration.md.
"""

import dataclasses
import functools
import inspect
import io
import shutil
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoo import settings
from zoo.command_line.keys import options
from zoo.quoting import hydra, program

_EXAMPLES = {
    "train": "model=mobilenetv2_100 data=folder data.root=photos train.epochs=30",
    "eval": "weights=runs/<run>",
    "benchmark": "models=[emo_1m,timm/fastvit_t8] profile.runtimes=[eager,onnxruntime]",
    "export": "weights=runs/<run> format=onnx quantize.int8=true",
    "prune": "weights=runs/<run> prune.latency_ms=6 prune.runtime=openvino",
    "store-logits": "weights=runs/<run> data=digits epochs=30 out=logits",
}


@dataclass(frozen=True)
class Setting:
    """One setting of a command.

    Attributes:
        key: Dotted key.
        default: Default in Hydra's grammar.
        comment: What the setting means; may be empty.
        heading: Comment above the setting and those that follow it; may be empty.
    """

    key: str
    default: str
    comment: str
    heading: str


def text(command: str) -> str:
    """Return the help of a command: every setting by group, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns, 110)
    schema = settings.RUNS[command]
    lines = [f"usage: {program(command)} <key>=<value> ...", ""]
    lines += [f"  {program(command)} {_EXAMPLES[command]}", ""]
    lines += _wrapped(
        "model=<name> is any name that `zoo list` prints, or timm/<name>. --multirun runs one job"
        " for each of several values: model=a,b.",
        width,
    )
    for group, rows in groups(schema):
        lines += ["", *_wrapped(group, width)]
        for row in rows:
            if row.heading:
                lines += ["", *_wrapped(f"# {row.heading}", width, "  ")]
            start, indent = f"  {row.key}={row.default}", " " * 36
            if len(start) > 34:
                lines.append(start)
                start = ""
            lines += _wrapped(row.comment, width, f"{start:<36}", indent)
    return "\n".join(line.rstrip() for line in lines)


def page() -> str:
    """Return docs/configuration.md: every setting of every command."""
    parts = [
        "# Configuration",
        "Every setting of the commands that take `key=value`, and of the scripts of the same names."
        " `zoo <command> --help` prints the same. The comments come from `zoo/settings.py`;"
        " `make generated` writes this page.",
        "Settings are given as `key=value`: `zoo train model=mobilenetv2_100 train.epochs=30`. From"
        ' Python, `zoo.train(model="mobilenetv2_100", epochs=30)` does the same.',
    ]
    seen: set[str] = set()
    for command, schema in settings.RUNS.items():
        for group, rows in groups(schema):
            title = f"{command}: other settings" if group == "settings" else group
            if title in seen:
                continue
            seen.add(title)
            parts += [f"## {title}", _table(rows)]
    return "\n\n".join(parts) + "\n"


def groups(schema: type) -> Iterator[tuple[str, list[Setting]]]:
    """Yield a title and the settings of each group of a command; the plain ones come first."""
    defaults = schema()
    inner = [entry for entry in dataclasses.fields(schema) if dataclasses.is_dataclass(entry.type)]
    plain = [row for row in _settings(schema, defaults, "") if "." not in row.key]
    names = {entry.name for entry in inner}
    plain = [row for row in plain if row.key not in names]
    if plain:
        yield "settings", plain
    for entry in inner:
        group = typing.cast(type, entry.type)
        summary = inspect.cleandoc(group.__doc__ or "").splitlines()[0]
        title = summary.replace("`", "").rstrip(".")
        rows = list(_settings(group, getattr(defaults, entry.name), f"{entry.name}."))
        yield title, rows


def _settings(schema: type, defaults: Any, prefix: str) -> Iterator[Setting]:
    notes = _comments(schema)
    for entry in dataclasses.fields(schema):
        heading, comment = notes.get(entry.name, ("", ""))
        value = getattr(defaults, entry.name)
        if prefix + entry.name == "data.name":
            comment += f", usually given as data=<name>: {', '.join(options('data'))}"
        shown = "" if dataclasses.is_dataclass(value) else hydra(value)
        yield Setting(prefix + entry.name, shown, comment, heading)


@functools.cache
def _comments(schema: type) -> dict[str, tuple[str, str]]:
    """Return for each field of a dataclass the comment above it and the one behind it."""
    source = textwrap.dedent(inspect.getsource(schema))
    above: list[str] = []
    found: dict[str, tuple[str, str]] = {}
    name, depth, line_start = "", 0, True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            said = token.string.lstrip("# ")
            if line_start:
                above.append(said)
            elif name:
                found[name] = (found[name][0], said)
        elif token.type == tokenize.NAME and line_start and depth == 1:
            name = token.string
            found[name] = (" ".join(above), "")
            above = []
        depth += {tokenize.INDENT: 1, tokenize.DEDENT: -1}.get(token.type, 0)
        if token.type in (tokenize.NEWLINE, tokenize.NL):
            line_start = True
        elif token.type not in (tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT):
            line_start = False
    return found


def _table(rows: list[Setting]) -> str:
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for row in rows:
        if row.heading:
            lines.append(f"| *{_escaped(row.heading)}* | | |")
        cells = [f"`{row.key}`", f"`{row.default}`", _escaped(row.comment)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _wrapped(line: str, width: int, start: str = "", indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        line,
        width,
        initial_indent=start,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
        drop_whitespace=True,
        replace_whitespace=False,
    ) or [start]
