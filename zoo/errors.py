"""The errors that a user can cause: each message is one line, names the value and the way out."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_CHOICES = 40  # in one message
_FOLDER_NOTE = "run folder: "


class ZooError(ValueError):
    """Base of all errors that a user can cause; the entry points print it as one line."""


class UnknownModel(ZooError):
    """No model with this name is registered."""


class BadWeights(ZooError):
    """A checkpoint that cannot be read, is not a set of weights, or belongs to another model."""


class BadInput(ZooError):
    """An argument, a file or a folder that cannot work."""


class UncountedOperator(ZooError):
    """A model runs an operator that has no counting rule."""


class MissingExtra(ZooError):
    """A package of an optional extra is not installed; the message has the pip command."""


class NotExportable(ZooError):
    """The model cannot be exported to the requested format, or the artefact does not match it."""


class OutputsDiffer(NotExportable):
    """The artefact was exported, but its outputs differ from the model's."""


@contextmanager
def folder_noted(folder: Path) -> Iterator[None]:
    """Note the folder of a run in every error, so that its log file is written there."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{_FOLDER_NOTE}{folder}")
        raise


def noted_folder(error: BaseException) -> Path | None:
    """Return the folder that `folder_noted` noted in an error, if any."""
    for note in getattr(error, "__notes__", []):
        if isinstance(note, str) and note.startswith(_FOLDER_NOTE):
            return Path(note.removeprefix(_FOLDER_NOTE))
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def shown(value: object) -> str:
    """Return a name for a message, on one line: as it is, or quoted if it has odd characters."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def unknown_value(
    what: str,
    value: object,
    choices: Iterable[object],
    *,
    where: str = "",
    near: str | None = None,
    listed_by: str | None = None,
) -> str:
    """Return the message for a value that is not one of `choices`, with the nearest choice.

    Args:
        what: Kind of the value, such as "model".
        value: The unknown value.
        choices: The valid values.
        where: Where the choices apply, such as " of data set digits".
        near: The choice to suggest; None finds the nearest.
        listed_by: Command that lists the choices, to print instead of them.
    """
    names = [str(choice) or "''" for choice in choices]
    matches = [near] if near else difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"; did you mean {matches[0]!r}?" if matches else "."
    shown = ", ".join([*names[:MAX_CHOICES], *(["..."] if len(names) > MAX_CHOICES else [])])
    listed = f"see {listed_by}" if listed_by else shown or "none"
    return f"unknown {what} {value!r}{where}{hint} Choices: {listed}"
