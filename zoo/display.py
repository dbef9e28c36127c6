"""Numbers with units, and results that print themselves: as text, and as HTML in notebooks."""

import html
from collections.abc import Sequence


def quantity(value: float | None) -> str:
    """Format a count with four digits and a unit: 12289928 as `12.29 M`."""
    if value is None:
        return "?"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.{2 if value < 100 * size else 1}f} {unit}"
    return str(value)


def byte_count(value: float | None) -> str:
    """Format a number of bytes in MiB; an unknown number as an empty string."""
    return "" if value is None else f"{value / 2**20:.1f} MiB"


def energy(value: float | None) -> str:
    """Format joules, with millijoules below 1 J; an unknown energy as an empty string."""
    if value is None:
        return ""
    return f"{1e3 * value:.1f} mJ" if value < 1 else f"{value:.2f} J"


def ms(value: float | None) -> str:
    """Format milliseconds, with more digits below 1 ms; an unknown time as an empty string."""
    return "" if value is None else f"{value:.{2 if value >= 1 else 4}f}"


def shape(sides: Sequence[int]) -> str:
    """Format a shape: `1x3x224x224`."""
    return "x".join(map(str, sides))


def html_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of two columns as HTML."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


class Displayed:
    """A result whose `repr` is one short line, and which is a table in notebooks.

    Subclasses define `__str__` and `rows`; a dataclass among them needs `repr=False`.
    """

    def rows(self) -> list[tuple[str, str]]:
        """Return names and formatted values."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self.rows())
