"""Write text and tables as Markdown."""

import re
from collections.abc import Sequence


class Markup(str):
    """Text that is already Markdown and must not be escaped."""

    __slots__ = ()


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are escaped unless they are `Markup`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(c if isinstance(c, Markup) else escape(c) for c in line)} |"
        for line in lines
    )


def escape(text: str) -> str:
    """Return `text` on one line, with the special characters of Markdown escaped."""
    return re.sub(r"([\\`*<>|]|(?<=\])\()", r"\\\1", " ".join(str(text).split()))
