"""Commands that a user can copy into a shell: quoted for the shell and for Hydra.

Two programs read a setting such as `weights='runs/lr=0.1'`. The shell removes its own quotes first;
Hydra's grammar then rejects most punctuation outside quotes. This module imports nothing else from
zoo.
"""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = ("train", "eval", "benchmark", "export")

# Text that Hydra reads as this text: no grammar, and neither a number, a truth value nor null.
_PLAIN = re.compile(r"[A-Za-z_./\\-][\w./\\~+%@?*-]*", re.ASCII)
_OTHER_TYPE = re.compile(r"[+-]?(inf|nan|null|true|false|\.?\d.*)", re.IGNORECASE)


def command_line(command: str, settings: Mapping[str, Any] | None = None, *words: object) -> str:
    """Return a command as the user would type it.

    It starts like the running program: `zoo eval`, `python -m zoo eval` or `python eval.py`.

    Args:
        command: Name of the command, such as `"eval"`.
        settings: Dotted keys and their values.
        *words: Arguments that are not settings, such as a path for `zoo report`.
    """
    parts = [str(word) for word in words]
    parts += [setting(key, value) for key, value in (settings or {}).items()]
    return " ".join([program(command), *map(shell, parts)])


def program(command: str) -> str:
    """Return the beginning of a command line, in the form in which this process was started."""
    started = Path(sys.argv[0] if sys.argv else "")
    if started.name == "__main__.py" and started.parent.name == "zoo":
        return f"python -m zoo {command}"
    if started.name in {f"{script}.py" for script in SCRIPTS}:
        return f"python {command}.py" if command in SCRIPTS else f"python -m zoo {command}"
    return f"zoo {command}"


def setting(key: str, value: Any) -> str:
    """Return `<key>=<value>` as Hydra reads it, without quotes for the shell."""
    return f"{key}={hydra(value)}"


def hydra(value: Any) -> str:
    """Return a value in Hydra's grammar; text that is not plain is quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(hydra, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra(entry)}" for key, entry in value.items()) + "}"
    text = str(value)
    if _PLAIN.fullmatch(text) and not _OTHER_TYPE.fullmatch(text):
        return text
    return quoted(text)


def quoted(text: str) -> str:
    """Return text in single quotes of Hydra's grammar, which then reads exactly this text."""
    # A backslash is only special in front of a quote, and the closing quote is one.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped) + "'"


def shell(word: str) -> str:
    """Return a word quoted for a POSIX shell; plain settings such as `a=b` stay as they are."""
    if re.fullmatch(r"[\w./:=+,@%-]+", word):
        return word
    return shlex.quote(word) if "'" not in word else _double_quoted(word)


def _double_quoted(word: str) -> str:
    if any(character in word for character in "$`!"):
        return shlex.quote(word)
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
