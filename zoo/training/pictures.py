"""Pictures of what models make of images, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.pairs import IGNORE

IGNORED = (0.5, 0.5, 0.5)  # colour of pixels that belong to no class
LEGEND = 40  # most classes that the picture names
INCHES = 1.8  # edge of an image


def draw_labels(
    path: Path, images: Tensor, labels: Tensor, predictions: Tensor, names: Sequence[str]
) -> None:
    """Draw a row for each image: the image, its labels, the predictions.

    Args:
        path: The file.
        images: Values 0..1, N C H W.
        labels: Class numbers, N H W; 255 is drawn grey.
        predictions: Class numbers, N H W.
        names: Of the classes.
    """
    colors = class_colors(len(names))
    columns = {
        "image": [_pixels(image) for image in images],
        "labels": [_coloured(numbers, colors) for numbers in labels],
        "predictions": [_coloured(numbers, colors) for numbers in predictions],
    }
    figure = _grid(columns)
    if len(names) <= LEGEND:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=tuple(color.tolist()), edgecolor="black", label=name)
            for color, name in zip(colors, names, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, dpi=120)


def draw_enlargements(
    path: Path,
    small: Tensor,
    enlarged: dict[str, Tensor],
    targets: Tensor,
    psnr: dict[str, list[float]],
) -> None:
    """Draw a row for each image: the small one, what became of it, what it should have become.

    Args:
        path: The file.
        small: Values 0..1, N C H W.
        enlarged: By name, values 0..1, N C 2H 2W.
        targets: Values 0..1, N C 2H 2W.
        psnr: Of the enlarged ones by the same names, dB.
    """
    columns = {"input": [_pixels(image) for image in small]}
    columns |= {name: [_pixels(image) for image in images] for name, images in enlarged.items()}
    columns |= {"target": [_pixels(image) for image in targets]}
    below = {name: [f"{value:.2f} dB" for value in values] for name, values in psnr.items()}
    _grid(columns, below).savefig(path, dpi=160)


def class_colors(count: int) -> Tensor:
    """Return a colour for each class, `count` 3: black for the first, then well apart.

    Neighbouring numbers lie far apart on the circle of hues; brightness takes turns.
    """
    from matplotlib.colors import hsv_to_rgb

    golden = 0.618034  # of the circle: no two of few hues come near each other
    rest = [(i * golden % 1, 0.85 - 0.35 * (i % 2), 1.0 - 0.3 * (i // 2 % 2)) for i in range(count)]
    return torch.tensor([(0.0, 0.0, 0.0), *(hsv_to_rgb(color).tolist() for color in rest[1:])])


def _coloured(numbers: Tensor, colors: Tensor) -> Tensor:
    """H W -> H W 3."""
    table = torch.cat([colors, torch.tensor([IGNORED])])
    return table[numbers.where(numbers != IGNORE, len(colors))]


def _pixels(image: Tensor) -> Tensor:
    """C H W -> H W 3, within 0..1."""
    image = image.clamp(0, 1)
    return image.expand(3, -1, -1).permute(1, 2, 0)


def _grid(columns: dict[str, list[Tensor]], below: dict[str, list[str]] | None = None) -> Any:
    """Return a figure with one column of pictures for each name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(next(iter(columns.values())))
    height, width, _ = next(iter(columns.values()))[0].shape
    size = (INCHES * len(columns), INCHES * rows * height / width + 1)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for place, (name, pictures) in enumerate(columns.items()):
        axes[0][place].set_title(name, fontsize=9)
        for row, picture in enumerate(pictures):
            panel = axes[row][place]
            panel.imshow(picture.numpy(), interpolation="nearest", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            if below and name in below:
                panel.set_xlabel(below[name][row], fontsize=8)
    return figure
