"""Pictures of detections: boxes over images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.deploy.box_drawing import SHOWN_SCORE, draw
from zoo.deploy.detections import Detections
from zoo.training import pictures

SIDE = 320  # pixels of the longer side of a drawn image at least


def draw_boxes(
    path: Path,
    images: Tensor,
    wanted: Sequence[Detections],
    found: Sequence[Detections],
    names: Sequence[str],
    title: str = "",
) -> None:
    """Draw a row for each image: the image with its boxes, and with the detections.

    Args:
        path: The file to write.
        images: Values in 0..1, N C H W.
        wanted: The boxes of each image.
        found: The detections in each image; those below `SHOWN_SCORE` are left out.
        names: Class names.
        title: Title of the picture.
    """
    columns = {
        "boxes": [_drawn(image, boxes, names) for image, boxes in zip(images, wanted, strict=True)],
        f"detections above {SHOWN_SCORE:g}": [
            _drawn(image, boxes, names, scores=True)
            for image, boxes in zip(images, found, strict=True)
        ],
    }
    pictures.draw_columns(path, columns, title)


def _drawn(image: Tensor, boxes: Detections, names: Sequence[str], scores: bool = False) -> Tensor:
    """Return an image C H W with boxes as H W 3, enlarged so that names are legible."""
    pixels = (255 * image.clamp(0, 1)).round().byte().expand(3, -1, -1).permute(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    factor = max(1, -(-SIDE // max(picture.size)))
    picture = picture.resize((factor * picture.width, factor * picture.height))
    drawn = draw(picture, boxes, names, scores=scores)
    return torch.from_numpy(np.asarray(drawn).copy()).float() / 255
