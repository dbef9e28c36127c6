"""Parts of HTML pages that are one file: no scripts, no addresses, pictures inside."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid #ccc; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
svg { max-width: 100%; background: #fff; }
figure { display: inline-block; width: 9rem; margin: .5rem; vertical-align: top; }
figcaption { font-size: .75rem; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } a { color: #8cf; } }
"""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#999999")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420, 280, 50, 40  # of a chart, pixels


def document(title: str, parts: Iterable[str]) -> str:
    """Return a page with a title; empty parts are left out."""
    body = "\n".join(part for part in (f"<h1>{text(title)}</h1>", *parts) if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def text(value: object) -> str:
    """Return a value as text; names of files may have bytes that are not UTF-8."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def bullets(items: Iterable[str]) -> str:
    """Return a list of sentences."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; the first column is aligned to the left."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in heading)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(content: bytes, title: str) -> str:
    """Return a PNG picture inside the page; nothing for no bytes."""
    if not content:
        return ""
    data = base64.b64encode(content).decode()
    return f'<img alt="{text(title)}" src="data:image/png;base64,{data}">'


def figure(content: str, caption: str) -> str:
    """Return a small picture with a caption."""
    return f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>"


def link(target: str) -> str:
    """Return a link to a file in the folder of the page."""
    return f'<a href="{text(target)}">{text(target)}</a>'


def chart(
    curves: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, title: str
) -> str:
    """Return lines in the square from 0 to 1 as SVG.

    Args:
        curves: Points (x, y) of each line, by name.
        across: Name of the x-axis.
        up: Name of the y-axis.
        title: What the chart shows, for readers who cannot see it.
    """
    wide, high = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - 10

    def at(x: float, y: float) -> str:
        return f"{_LEFT + wide * x:.1f},{10 + high * (1 - y):.1f}"

    parts = [
        f'<svg role="img" aria-label="{text(title)}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' width="{_WIDTH}" font-size="11" font-family="system-ui, sans-serif">'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _LEFT + wide * tick, 10 + high * (1 - tick)
        parts.append(
            f'<path d="M{at(tick, 0)}L{at(tick, 1)}M{at(0, tick)}L{at(1, tick)}" stroke="#ddd"/>'
            f'<text x="{x:.0f}" y="{_HEIGHT - 26}" text-anchor="middle">{tick:.0%}</text>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{tick:.0%}</text>'
        )
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(at(x, y) for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<text x="{_LEFT + 8}" y="{_HEIGHT - 54 - 14 * number}" fill="{colour}">']
        parts += [f"{text(name)}</text>"]
    parts.append(
        f'<text x="{_LEFT + wide / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{text(across)}'
        f'</text><text transform="translate(12 {10 + high / 2:.0f}) rotate(-90)"'
        f' text-anchor="middle">{text(up)}</text></svg>'
    )
    return "".join(parts)
