"""The errors that a user can cause: each message is one line, names the value and the way out."""


class ZooError(ValueError):
    """Base of all errors that a user can cause; the entry points print it as one line."""


class UnknownModel(ZooError):
    """No model of that name is registered."""


class BadWeights(ZooError):
    """A checkpoint that cannot be read, is not a set of weights, or belongs to another model."""


class BadInput(ZooError):
    """An argument, a file or a folder that cannot work."""


class UncountedOperator(ZooError):
    """The counter met an operator that has no rule."""


class MissingExtra(ZooError):
    """A package of an optional extra is not installed; the message gives the line that does it."""


class NotExportable(ZooError):
    """The model cannot be exported to the requested format, or the artefact does not match it."""


class OutputsDiffer(NotExportable):
    """The artefact was made, but its outputs differ from the model's."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
