"""Settings as words of a command line: check each `key=value`, and quote what is plainly text.

Hydra's grammar gives punctuation a meaning, so that `weights=epoch=3.ckpt` or `train.out=1e5` is
not the file or folder of that name. A key whose value is text takes its value literally here,
unless it is quoted, `null`, an interpolation or, in a multirun, a list of values. All other
mistakes end in one line that names the key, before Hydra starts.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from zoo import quoting, registry
from zoo.command_line.keys import FREE_KEYS, GROUPS, keys, nearest_key, options
from zoo.errors import BadInput, unknown_value

_TRUTH_VALUES = ("true", "false", "yes", "no", "on", "off", "y", "n", "1", "0")


def read(command: str, words: Sequence[str], *, sweep: bool = False) -> list[str]:
    """Check the settings of a command, and return them in Hydra's grammar.

    Args:
        command: A key of `zoo.settings.RUNS`.
        words: Settings as typed, such as `train.epochs=3`.
        sweep: Whether several values of a key mean several jobs (Hydra's multirun).

    Raises:
        BadInput: A word is not a setting, or its key or its value is invalid.
    """
    checked: list[str] = []
    groups: dict[str, str] = {}
    searched = any(word.startswith("hydra.searchpath") for word in words)
    for word in words:
        key, raw = _split(command, word)
        name = key.lstrip("+")
        if name.startswith("hydra.") or name.startswith("hydra/"):
            checked.append(word)
            continue
        _check_key(command, name)
        override, word = _parse(command, name, word, raw, sweep)
        if override.is_sweep_override() and not sweep:
            ways = "train.sweep=<folder> or " if command == "train" else ""
            raise BadInput(
                f"{word}: several values need {ways}the flag --multirun; for text with these"
                f" characters, quote it: {quoting.shell(quoting.setting(name, raw))}"
            )
        if name in GROUPS:
            if groups.setdefault(name, raw) != raw:
                raise BadInput(f"{name} is given twice: {groups[name]} and {raw}; keep one of them")
            if not searched and not override.is_sweep_override():
                _check_option(name, str(override.value()))
        for value in _values(override):
            _check_value(command, name, value, raw)
        if word not in checked:
            checked.append(word)
    return checked


def parse(word: str) -> Override:
    """Parse a word that `read` returned."""
    return OverridesParser.create().parse_override(word)


def _split(command: str, word: str) -> tuple[str, str]:
    """Return key and value of a word."""
    key, equals, raw = word.partition("=")
    if equals and key and not key.startswith("~"):
        return key, raw
    program = quoting.program(command)
    if word.startswith("~"):
        raise BadInput(f"{word}: settings cannot be removed; set another value: {word[1:]}=<value>")
    if registry.is_model(word):
        raise BadInput(f"{word!r} is not a setting; did you mean model={word}?")
    if word in keys(command):
        raise BadInput(f"{word!r} has no value; give {word}=<value>")
    near = nearest_key(command, word)
    hint = f"; did you mean {near}=<value>?" if near else ""
    raise BadInput(
        f"{word!r} is not a setting{hint} Settings look like model=<name>, see {program} --help"
    )


def _check_key(command: str, key: str) -> None:
    known = keys(command)
    if key in known or key == "experiment" or any(key.startswith(f"{f}.") for f in FREE_KEYS):
        return
    program = quoting.program(command)
    raise BadInput(
        unknown_value(
            "key",
            key,
            (),
            where=f" of {program}",
            near=nearest_key(command, key),
            listed_by=f"{program} --help",
        )
    )


def _parse(command: str, key: str, word: str, raw: str, sweep: bool) -> tuple[Override, str]:
    """Parse a word, as literal text if its key takes text; return also the word for Hydra."""
    is_text = key in GROUPS or _accepts_text(keys(command).get(key))
    if not raw and is_text:
        raise BadInput(
            f"{key} is empty; give {key}=<value>" + ("" if key == "model" else " or null")
        )
    try:
        override = parse(word)
    except HydraException as error:
        if is_text:
            word = f"{word.partition('=')[0]}={quoting.quoted(raw)}"
            return _parse_quoted(word, key), word
        raise BadInput(
            f"{key}={raw} is not in Hydra's grammar; quote it:"
            f" {quoting.shell(quoting.setting(key, raw))}"
        ) from error
    if not is_text or (sweep and override.is_sweep_override()) or raw[:1] in ("'", '"'):
        return override, word
    value = None if override.is_sweep_override() else override.value()
    if raw == "null" or (isinstance(value, str) and value == raw):
        return override, word
    word = f"{word.partition('=')[0]}={quoting.quoted(raw)}"
    return _parse_quoted(word, key), word


def _parse_quoted(word: str, key: str) -> Override:
    try:
        return parse(word)
    except HydraException as error:
        raise BadInput(f"{key}: the value contains characters that cannot be given") from error


def _accepts_text(annotation: Any) -> bool:
    return annotation is str or str in typing.get_args(annotation) and _is_optional(annotation)


def _is_optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (types.UnionType, typing.Union)


def _check_option(group: str, value: str) -> None:
    """Raise `BadInput` for an unknown name of a group; models are checked when composed."""
    if group != "model" and value not in (known := options(group)) and value != "null":
        raise BadInput(unknown_value(group, value, known))


def _values(override: Override) -> list[Any]:
    """Return the value of an override, or the values of a list of jobs if they are known."""
    if not override.is_sweep_override():
        return [override.value()]
    listed = getattr(override.value(), "list", None)
    return list(listed) if isinstance(listed, list) else []


def _check_value(command: str, key: str, value: Any, raw: str) -> None:
    """Raise `BadInput` unless a value has the type of its key."""
    annotation = keys(command).get(key)
    value = getattr(value, "text", value)  # quoted
    if annotation is None or (isinstance(value, str) and "${" in value):
        return
    if dataclasses.is_dataclass(annotation):
        if key in GROUPS:  # the name of one of its files
            return
        if not isinstance(value, dict):
            example = dataclasses.fields(annotation)[0].name
            raise BadInput(
                f"{key}={raw}: {key} is a group of settings; set one of them, such as"
                f" {key}.{example}=<value>"
            )
        for name, entry in value.items():
            _check_key(command, f"{key}.{name}")
            _check_value(command, f"{key}.{name}", entry, str(entry))
        return
    if not _fits(annotation, value):
        shown = "null" if value is None else repr(raw)
        raise BadInput(f"{key}: {shown} is not {_words(annotation)}")


def _fits(annotation: Any, value: Any) -> bool:
    """Return whether OmegaConf would accept a value for a type."""
    if annotation is Any:
        return True
    if _is_optional(annotation):
        return value is None or any(
            _fits(part, value) for part in typing.get_args(annotation) if part is not type(None)
        )
    if value is None:
        return False
    origin = typing.get_origin(annotation) or annotation
    if origin is list:
        (entry,) = typing.get_args(annotation)
        return isinstance(value, list) and all(
            _fits(entry, getattr(item, "text", item)) for item in value
        )
    if origin is dict:
        return isinstance(value, dict)
    if origin is bool:
        return str(value).lower() in _TRUTH_VALUES
    if origin is str:
        return not isinstance(value, list | dict)
    return not isinstance(value, bool | list | dict) and _converts(origin, value)


def _converts(number: type, value: Any) -> bool:
    if number is int and isinstance(value, float):
        return False
    try:
        number(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _words(annotation: Any) -> str:
    """Return what a type is called in a message."""
    if _is_optional(annotation):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return " or ".join([*map(_words, parts), "null"])
    origin = typing.get_origin(annotation) or annotation
    if origin is list:
        (entry,) = typing.get_args(annotation)
        examples = {int: "[1,2]", float: "[0.5,0.5]", str: "[a,b]"}
        return f"a list such as {examples.get(entry, '[1,2]')}"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        dict: "a dictionary such as {key:1}",
    }
    return names[origin]
