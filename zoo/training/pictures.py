"""Pictures of predictions and confusion matrices, for people to look at."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.pairs import IGNORE
from zoo.training.disk import atomic_file

IGNORED_COLOR = (0.8, 0.8, 0.8)  # of no class
OPACITY = 0.6  # of a class colour over the image
MAX_LEGEND_CLASSES = 40  # with more classes, the picture has no legend
MAX_LABELLED_CLASSES = 30  # with more classes, the confusion matrix has neither names nor counts
LONGEST_LEVEL_NAME = 4  # characters; longer names below a confusion matrix are turned
IMAGE_INCHES = 1.8  # width of an image
DETAIL = 24  # side of the enlarged part of a picture whose target is an image, pixels

# Okabe and Ito, Color Universal Design (2008): distinct with every kind of colour blindness.
OKABE_ITO = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115),
    (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip


def draw_labels(
    path: Path,
    images: Tensor,
    labels: Tensor,
    predictions: Tensor,
    names: Sequence[str],
    title: str = "",
) -> None:
    """Draw a row for each image: the image, and the labels and the predictions over it.

    Args:
        path: The file to write.
        images: Values in 0..1, N C H W.
        labels: Class numbers, N H W; 255 is drawn in grey.
        predictions: Class numbers, N H W.
        names: Class names.
        title: Title of the picture.
    """
    colors = class_colors(len(names))
    shown = [_to_rgb(image) for image in images]
    pairs = list(zip(shown, labels, predictions, strict=True))
    columns = {
        "image": shown,
        "labels": [_overlay(image, numbers, colors) for image, numbers, _ in pairs],
        "predictions": [_overlay(image, numbers, colors) for image, _, numbers in pairs],
    }
    ious = [mean_iou(numbers, predicted) for _, numbers, predicted in pairs]
    captions = {"predictions": ["" if math.isnan(x) else f"mean IoU {x:.2f}" for x in ious]}
    figure = _grid(columns, captions, title)
    if len(names) <= MAX_LEGEND_CLASSES:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=tuple(color.tolist()), edgecolor="black", label=name)
            for color, name in zip(colors, names, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    _save(figure, path, dpi=120)


def draw_columns(path: Path, columns: dict[str, list[Tensor]], title: str = "") -> None:
    """Draw a column of images H W 3, values in 0..1, for each name."""
    _save(_grid(columns, {}, title), path, dpi=200)


def mean_iou(labels: Tensor, predictions: Tensor) -> float:
    """Return the mean IoU of the classes in one image, H W each; NaN without a labelled pixel."""
    valid = labels != IGNORE
    ious = []
    for number in torch.cat([labels[valid], predictions[valid]]).unique().tolist():
        actual, predicted = (labels == number) & valid, (predictions == number) & valid
        ious.append(float((actual & predicted).sum() / (actual | predicted).sum()))
    return sum(ious) / len(ious) if ious else math.nan


def draw_images(
    path: Path,
    given: Tensor,
    made: dict[str, Tensor],
    targets: Tensor,
    psnr: dict[str, list[float]],
    title: str = "",
) -> None:
    """Draw a row for each image: the input, what methods made of it, the target, and a detail.

    The last columns enlarge the part of the target with the most texture: as the last method made
    it, in the target, and the absolute difference of both, which is scaled to be visible.

    Args:
        path: The file to write.
        given: Values in 0..1, N C H W.
        made: For each method, values in 0..1, of the size of the targets.
        targets: Values in 0..1, N C H W or N C 2H 2W.
        psnr: For each method, the PSNR of each image, dB.
        title: Title of the picture.
    """
    columns = {"input": [_to_rgb(image) for image in given]}
    columns |= {name: [_to_rgb(image) for image in images] for name, images in made.items()}
    columns |= {"target": [_to_rgb(image) for image in targets]}
    captions = {name: [f"{value:.2f} dB" for value in values] for name, values in psnr.items()}
    method = list(made)[-1]
    parts = [_most_textured(target) for target in targets]
    details = [image[part] for image, part in zip(made[method], parts, strict=True)]
    references = [image[part] for image, part in zip(targets, parts, strict=True)]
    differences = [(a - b).abs() for a, b in zip(details, references, strict=True)]
    factors = [max(1, int(1 / max(float(d.max()), 1e-3))) for d in differences]
    columns[f"{method}, detail"] = [_to_rgb(image) for image in details]
    columns["target, detail"] = [_to_rgb(image) for image in references]
    columns["difference"] = [_to_rgb(f * d) for f, d in zip(factors, differences, strict=True)]
    captions["difference"] = [f"x{factor}" for factor in factors]
    _save(_grid(columns, captions, title), path, dpi=160)


def most_textured(images: Tensor, count: int) -> list[int]:
    """Return the numbers of the images with the highest variance, in order.

    Args:
        images: N C H W.
        count: Number of images to return.
    """
    texture = images.flatten(1).var(dim=1)
    return sorted(texture.topk(min(count, len(images))).indices.tolist())


def _most_textured(image: Tensor) -> tuple[slice, slice, slice]:
    """Return the square of an image C H W, of `DETAIL` pixels, with the highest variance."""
    height, width = image.shape[1:]
    side = min(DETAIL, height, width)
    step = max(1, side // 2)
    corners = [
        (y, x) for y in range(0, height - side + 1, step) for x in range(0, width - side + 1, step)
    ]
    y, x = max(corners, key=lambda at: float(
        image[:, at[0] : at[0] + side, at[1] : at[1] + side].flatten(1).var(dim=1).sum()
    ))  # fmt: skip
    return slice(None), slice(y, y + side), slice(x, x + side)


def draw_confusion(
    path: Path, confusion: list[list[int]], names: list[str], title: str = ""
) -> None:
    """Draw a confusion matrix: shares of each actual class, and the counts of up to 30 classes."""
    figure = _figure(_confusion_side(names), _confusion_side(names))
    axes = figure.add_subplot()
    shares = [[n / max(sum(row), 1) for n in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = axes.inset_axes((1.03, 0, 0.04, 1))  # as tall as the matrix
    figure.colorbar(image, cax=bar, label="share of the actual class")
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_title(title, fontsize=10, wrap=True)
    if len(names) <= MAX_LABELLED_CLASSES:
        is_short = max(map(len, names)) <= LONGEST_LEVEL_NAME
        axes.set_xticks(range(len(names)), names, rotation=0 if is_short else 90)
        axes.set_yticks(range(len(names)), names)
        for y, row in enumerate(confusion):
            for x, n in enumerate(row):
                if n:
                    color = "white" if shares[y][x] > 0.5 else "black"
                    axes.text(x, y, str(n), ha="center", va="center", color=color, fontsize=8)
    _save(figure, path, dpi=120)


def draw_captioned(path: Path, images: Tensor, captions: Sequence[str], title: str) -> None:
    """Draw images N C H W, values in 0..1, in a square, each with a caption."""
    side = math.ceil(math.sqrt(len(images)))
    figure = _figure(IMAGE_INCHES * side, IMAGE_INCHES * side + 0.5)
    figure.suptitle(title, fontsize=10)
    for axes, image, caption in itertools.zip_longest(
        figure.subplots(side, side, squeeze=False).flat, images, captions
    ):
        axes.set_axis_off()
        if image is not None:
            axes.imshow(_to_rgb(image).numpy(), interpolation="nearest", vmin=0, vmax=1)
            axes.set_title(caption, fontsize=8)
    _save(figure, path, dpi=120)


def draw_curves(path: Path, columns: dict[str, list[float]], title: str) -> None:
    """Draw losses at the left and all other metrics at the right, over the epochs."""
    figure = _figure(9, 3.5)
    figure.suptitle(title, fontsize=10)
    halves = figure.subplots(1, 2)
    for name, values in columns.items():
        axes = halves[0 if "loss" in name else 1]
        axes.plot(range(1, len(values) + 1), values, label=name, marker=".")
    for axes in halves:
        axes.set_xlabel("epoch")
        if axes.lines:
            axes.legend(fontsize=8)
    _save(figure, path, dpi=120)


def draw_lr_range(
    path: Path,
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: Sequence[float],
    chosen: float | None,
    title: str,
) -> None:
    """Draw the loss and its running mean over the learning rate, and the suggested rate."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="0.8", label="loss")
    axes.plot(rates, smooth, label="running mean")
    if chosen is not None:
        axes.axvline(chosen, color="#d55e00", label=f"suggested: {chosen:.2g}")
    axes.set(xscale="log", xlabel="train.lr", ylabel="loss")
    axes.set_ylim(bottom=0, top=1.1 * max(smooth))
    axes.set_title(f"learning-rate range test of {title}", fontsize=10)
    axes.legend()
    _save(figure, path, dpi=120)


def _confusion_side(names: list[str]) -> float:
    """Return the side of the figure of a confusion matrix, inches."""
    return max(4.5, 2.5 + 0.45 * len(names)) if len(names) <= MAX_LABELLED_CLASSES else 12


def class_colors(count: int) -> Tensor:
    """Return a colour for each class, `count` 3 in 0..1: black for the first class.

    The first eight are those of Okabe and Ito, for readers who are colour-blind. Each further one
    is the colour of a fixed grid that differs most from all before it, for the eye that sees the
    smallest difference (`color_differences`).
    """
    chosen = [tuple(value / 255 for value in color) for color in OKABE_ITO[:count]]
    levels = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    grid = torch.tensor([(r, g, b) for r in levels for g in levels for b in levels])
    colors = torch.tensor(chosen).reshape(-1, 3)
    if count <= len(OKABE_ITO):
        return colors
    grey = torch.tensor([IGNORED_COLOR])  # means no class
    difference = color_differences(grid, torch.cat([colors, grey])).amin(dim=1)
    for _ in range(count - len(OKABE_ITO)):
        best = grid[int(difference.argmax())][None]
        colors = torch.cat([colors, best])
        difference = torch.minimum(difference, color_differences(grid, best)[:, 0])
    return colors


# Machado, Oliveira, Fernandes (2009): linear RGB as seen without red or green cones.
_DICHROMATS = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
     (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
     (-0.011820, 0.042940, 0.968881)),
)  # fmt: skip


def color_differences(a: Tensor, b: Tensor) -> Tensor:
    """Return the smallest difference for the eye of colours in sRGB, N 3 and M 3, as N M.

    The difference is the distance in CIELAB, of which 2.3 is just visible. The smallest is that of
    normal sight, sight without red cones, and sight without green cones.
    """
    views = zip(_perceived(a), _perceived(b), strict=True)
    return torch.stack([torch.cdist(one, other) for one, other in views]).amin(dim=0)


def _perceived(colors: Tensor) -> list[Tensor]:
    """Return sRGB colours N 3 in CIELAB, as seen normally, without red and without green cones."""
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    views = [linear, *(linear @ torch.tensor(matrix).T for matrix in _DICHROMATS)]
    return [_lab(view.clamp(0, 1)) for view in views]


def _lab(linear: Tensor) -> Tensor:
    """Convert linear RGB N 3 to CIELAB N 3, white point D65."""
    to_xyz = torch.tensor([
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ])  # fmt: skip
    xyz = linear @ to_xyz.T / torch.tensor([0.95047, 1.0, 1.08883])
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _overlay(image: Tensor, numbers: Tensor, colors: Tensor) -> Tensor:
    """Return an image H W 3 with the colours of class numbers H W over its brightness."""
    table = torch.cat([colors, torch.tensor([IGNORED_COLOR])])
    classes = table[numbers.where(numbers != IGNORE, len(colors))]
    brightness = image.mean(dim=2, keepdim=True)
    return (OPACITY * classes + (1 - OPACITY) * brightness).clamp(0, 1)


def _to_rgb(image: Tensor) -> Tensor:
    """Convert an image C H W with one or three channels to H W 3, clipped to 0..1."""
    image = image.clamp(0, 1)
    return image.expand(3, -1, -1).permute(1, 2, 0)


def _grid(columns: dict[str, list[Tensor]], captions: dict[str, list[str]], title: str) -> Any:
    """Return a figure with a column of images for each name, and captions below the images."""
    rows = len(next(iter(columns.values())))
    height, width, _ = next(iter(columns.values()))[0].shape
    figure = _figure(IMAGE_INCHES * len(columns), IMAGE_INCHES * rows * height / width + 1)
    if title:
        figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        grid[0][column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            axes = grid[row][column]
            axes.imshow(image.numpy(), interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if name in captions:
                axes.set_xlabel(captions[name][row], fontsize=8)
    return figure


def _figure(width: float, height: float) -> Any:
    """Return an empty figure that needs no display, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure as PNG; characters that the font does not have are drawn as boxes."""
    import warnings

    with atomic_file(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, dpi=dpi, format="png")
