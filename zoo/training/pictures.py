"""Pictures of predictions, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.pairs import IGNORE

IGNORED_COLOR = (0.5, 0.5, 0.5)
MAX_LEGEND_CLASSES = 40  # with more classes, the picture has no legend
IMAGE_INCHES = 1.8  # width of an image


def draw_labels(
    path: Path, images: Tensor, labels: Tensor, predictions: Tensor, names: Sequence[str]
) -> None:
    """Draw a row for each image: the image, its labels, the predictions.

    Args:
        path: The file to write.
        images: Values in 0..1, N C H W.
        labels: Class numbers, N H W; 255 is drawn in grey.
        predictions: Class numbers, N H W.
        names: Class names.
    """
    colors = class_colors(len(names))
    columns = {
        "image": [_to_rgb(image) for image in images],
        "labels": [_colored(numbers, colors) for numbers in labels],
        "predictions": [_colored(numbers, colors) for numbers in predictions],
    }
    figure = _grid(columns)
    if len(names) <= MAX_LEGEND_CLASSES:
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
    """Draw a row for each image: the input, the enlarged versions of it, the target.

    Args:
        path: The file to write.
        small: Values in 0..1, N C H W.
        enlarged: For each method, values in 0..1, N C 2H 2W.
        targets: Values in 0..1, N C 2H 2W.
        psnr: For each method, the PSNR of each image, dB.
    """
    columns = {"input": [_to_rgb(image) for image in small]}
    columns |= {name: [_to_rgb(image) for image in images] for name, images in enlarged.items()}
    columns |= {"target": [_to_rgb(image) for image in targets]}
    captions = {name: [f"{value:.2f} dB" for value in values] for name, values in psnr.items()}
    _grid(columns, captions).savefig(path, dpi=160)


def class_colors(count: int) -> Tensor:
    """Return a colour for each class, `count` 3: black for the first, distinct hues for the rest.

    Consecutive classes differ by the golden ratio in hue, and alternate in brightness.
    """
    from matplotlib.colors import hsv_to_rgb

    step = 0.618034  # golden ratio: any number of consecutive hues is spread evenly
    hsv = [(i * step % 1, 0.85 - 0.35 * (i % 2), 1.0 - 0.3 * (i // 2 % 2)) for i in range(count)]
    return torch.tensor([(0.0, 0.0, 0.0), *(hsv_to_rgb(color).tolist() for color in hsv[1:])])


def _colored(numbers: Tensor, colors: Tensor) -> Tensor:
    """Convert class numbers H W to colours H W 3."""
    table = torch.cat([colors, torch.tensor([IGNORED_COLOR])])
    return table[numbers.where(numbers != IGNORE, len(colors))]


def _to_rgb(image: Tensor) -> Tensor:
    """Convert an image C H W with one or three channels to H W 3, clipped to 0..1."""
    image = image.clamp(0, 1)
    return image.expand(3, -1, -1).permute(1, 2, 0)


def _grid(columns: dict[str, list[Tensor]], captions: dict[str, list[str]] | None = None) -> Any:
    """Return a figure with a column of images for each name, and captions below the images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(next(iter(columns.values())))
    height, width, _ = next(iter(columns.values()))[0].shape
    size = (IMAGE_INCHES * len(columns), IMAGE_INCHES * rows * height / width + 1)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        grid[0][column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            axes = grid[row][column]
            axes.imshow(image.numpy(), interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if captions and name in captions:
                axes.set_xlabel(captions[name][row], fontsize=8)
    return figure
