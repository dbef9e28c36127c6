"""The page of `zoo eval`: one HTML file about the images, which works offline."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from zoo.diagnosis import findings
from zoo.reports import html_parts as html

NAME = "report.html"
THUMBNAIL = 112  # pixels
MOST_LISTED = 30  # groups of copies, and classes


@dataclass(frozen=True)
class Shown:
    """An image on the page.

    Attributes:
        caption: What is said about it.
        pixels: H W 3 in 0..1; None if the image cannot be shown.
        mapped: The image with its class-activation map, H W 3 in 0..1; None without a map.
    """

    caption: str
    pixels: np.ndarray | None = None
    mapped: np.ndarray | None = None


@dataclass(frozen=True)
class Content:
    """What the page shows besides the report.

    Attributes:
        logits: N K.
        targets: Class numbers, N.
        worst: The worst mistakes.
        suspects: The most doubtful labels.
        flips: Images with another prediction than that of the reference.
        copies: Groups of copies in both splits, their keys by split; None if not searched.
        train_images: Number of training images; None if they cannot be listed.
        with_train: Whether labels of training images were looked at.
    """

    logits: Tensor
    targets: Tensor
    worst: list[Shown]
    suspects: list[Shown]
    flips: list[Shown]
    copies: list[dict[str, list[str]]] | None
    train_images: int | None
    with_train: bool


def render(found: Content, report: dict[str, Any], title: str) -> str:
    """Return the HTML of the page."""
    worst = found.worst
    has_maps = any(one.mapped is not None for one in worst)
    parts = [
        html.bullets(_summary(report)),
        f"<p>Every image: {html.link('images.csv')}, classes: {html.link('classes.csv')},"
        f" numbers: {html.link('report.json')}</p>",
        "<h2>Worst images</h2>",
        _worst_words(worst, has_maps),
        _figures(worst),
        "<h2>Labels in doubt</h2>",
        _suspect_words(found, report),
        _figures(found.suspects),
        "<h2>Copies in both splits</h2>",
        _copies(found),
        "<h2>Calibration</h2>",
        _calibration(found, report),
        "<h2>Abstaining</h2>",
        _abstention(found, report),
        *_changes(found, report),
        "<h2>Classes</h2>",
        _classes(report),
    ]
    return html.document(title, parts)


def _summary(report: dict[str, Any]) -> list[str]:
    tops = [
        f"{name} {top['value']:.2%} [{top['low']:.2%}, {top['high']:.2%}]"
        for name in ("top1", "top5")
        if (top := report.get(name))
    ]
    shown = [f"{report['images']} images: {', '.join(tops)} (95 % confidence)"]
    shown.append(
        f"macro-F1 {report['macro_f1']:.2%}, macro recall {report['macro_recall']:.2%},"
        f" loss {report['loss']:.4f}"
    )
    for key in ("weights", "artefact", "precision", "runtime"):
        if report.get(key):
            shown.append(f"{key}: {report[key]}")
    return shown


def _worst_words(worst: list[Shown], has_maps: bool) -> str:
    if not worst:
        return "<p>No image is classified wrongly.</p>"
    words = "Wrong predictions, those with the highest loss first."
    if has_maps:
        words += (
            " On the right, what the model saw the predicted class in: bright parts speak for it"
            " (class-activation map, from the outputs of the evaluated model itself)."
        )
    else:
        words += (
            " There are no class-activation maps: they need a checkpoint or an ONNX file whose"
            " head is linear and averages a feature map of at least 2x2 positions."
        )
    return f"<p>{html.text(words)}</p>"


def _suspect_words(found: Content, report: dict[str, Any]) -> str:
    if found.with_train:
        words = (
            "of all images have a label that a classifier of the other images' features does not"
            " predict (cross-validation)."
        )
    else:
        words = (
            "of the validation images have a label that the model doubts. Give train_images=true"
            " to look at the training images, too."
        )
    return (
        f"<p>{report['suspects']} {html.text(words)} All images, the most doubtful first:"
        f" {html.link('suspects.csv')}</p>"
    )


def _copies(found: Content) -> str:
    if found.copies is None:
        why = (
            "There are no training images that can be listed."
            if found.train_images is None
            else f"Not searched, as there are {found.train_images} training images; give"
            " train_images=true."
        )
        return f"<p>{html.text(why)}</p>"
    if not found.copies:
        return "<p>None found, neither exact nor resized or compressed again.</p>"
    groups = [
        f"val {', '.join(keys['val'])} = train {', '.join(keys['train'])}" for keys in found.copies
    ]
    more = len(groups) - MOST_LISTED
    shown = [*groups[:MOST_LISTED], *([f"and {more} more groups"] if more > 0 else [])]
    words = f"{len(groups)} groups look alike, so the accuracy may be too high:"
    return f"<p>{words}</p>{html.bullets(shown)}"


def _calibration(found: Content, report: dict[str, Any]) -> str:
    about = report["calibration"]
    temperature = about["temperature"]
    words = (
        f"Expected calibration error {about['ece']:.2%}; with temperature {temperature:.3g},"
        f" fitted on these images, {about['ece_with_temperature']:.2%}."
    )
    curves = {
        "as predicted": findings.reliability(found.logits, found.targets),
        "with temperature": findings.reliability(found.logits / temperature, found.targets),
        "perfect": [(0.0, 0.0), (1.0, 1.0)],
    }
    return f"<p>{words}</p>" + html.chart(curves, "confidence", "accuracy", "reliability diagram")


def _abstention(found: Content, report: dict[str, Any]) -> str:
    curve = findings.abstention_curve(found.logits, found.targets)
    rows = [
        (
            f"{row['goal']:.0%}",
            "–" if row["threshold"] is None else f"{row['threshold']:.4f}",
            f"{row['coverage']:.1%}",
            "–" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
        )
        for row in report["abstention"]
    ]
    chart = html.chart(
        {"accuracy": [(coverage, accuracy) for _, coverage, accuracy in curve]},
        "images answered, most confident first",
        "accuracy of the answers",
        "abstention curve",
    )
    return (
        "<p>If the model only answers when its confidence reaches a threshold:</p>"
        + html.table(("accuracy wanted", "threshold", "images answered", "accuracy"), rows)
        + chart
    )


def _changes(found: Content, report: dict[str, Any]) -> list[str]:
    about = report.get("changes")
    if about is None:
        return []
    words = (
        f"Compared with {about['reference']} on the same {about['images']} images:"
        f" {about['flipped']} have another prediction; {about['gained']} became right and"
        f" {about['lost']} wrong. Top-1 changes by {100 * about['difference']:+.2f} points"
        f" [{100 * about['low']:+.2f}, {100 * about['high']:+.2f}] (95 %, paired; p ="
        f" {about['p']:.2g}, McNemar)."
    )
    return [
        "<h2>Changes against the float model</h2>",
        f"<p>{html.text(words)} The images: {html.link('flips.csv')}</p>",
        _figures(found.flips),
    ]


def _classes(report: dict[str, Any]) -> str:
    rows = sorted(report["classes"], key=lambda row: 2.0 if row["f1"] is None else row["f1"])
    cells = [
        (
            row["class"],
            row["n"],
            *("–" if row[k] is None else f"{row[k]:.1%}" for k in ("precision", "recall", "f1")),
        )
        for row in rows[:MOST_LISTED]
    ]
    return html.table(("class", "images", "precision", "recall", "F1"), cells)


def _figures(shown: list[Shown]) -> str:
    figures = []
    for one in shown:
        parts = [pixels for pixels in (one.pixels, one.mapped) if pixels is not None]
        content = "".join(html.picture(_png(pixels), one.caption) for pixels in parts)
        figures.append(html.figure(content, one.caption))
    return f"<div>{''.join(figures)}</div>" if figures else ""


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray((255 * pixels).round().astype(np.uint8))
    side = max(image.size)
    if side < THUMBNAIL:
        factor = THUMBNAIL // side
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
