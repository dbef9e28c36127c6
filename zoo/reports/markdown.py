"""Text and tables of Markdown."""

import re
from collections.abc import Sequence


class Markup(str):
    """Text that is Markdown already."""

    __slots__ = ()


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; cells are escaped, except for those that are `Markup`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(c if isinstance(c, Markup) else escape(c) for c in line)} |"
        for line in lines
    )


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*<>|]|(?<=\])\()", r"\\\1", " ".join(str(text).split()))


def ms(value: float) -> str:
    """Write milliseconds, small ones with more digits."""
    return f"{value:.{2 if value >= 1 else 4}f}"
