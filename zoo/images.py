"""Read image files of any kind as 8-bit RGB or grey."""

from typing import IO

import numpy as np
from PIL import Image

from zoo.errors import BadInput, first_line

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode


def read_image(source: str | IO[bytes], in_chans: int, name: str) -> Image.Image:
    """Decode an image completely.

    Args:
        source: Path or open binary file.
        in_chans: 1 (grey) or 3 (RGB).
        name: Name of the image in error messages.

    Raises:
        BadInput: The file is missing, not an image, truncated or damaged.
    """
    try:
        with Image.open(source) as image:
            return convert(image, in_chans)
    # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ... on damaged files.
    except Exception as error:
        raise _unreadable(name, error) from error


def image_size(path: str) -> tuple[int, int]:
    """Return (width, height) in pixels from the file's header, without decoding the image.

    Raises:
        BadInput: The file is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # as in `read_image`
        raise _unreadable(path, error) from error


def _unreadable(name: str, error: Exception) -> BadInput:
    return BadInput(
        f"cannot read image {name} ({reason(error)}); "
        "repair or remove it, or set data.skip_corrupt=true to skip such files"
    )


def reason(error: Exception) -> str:
    """Return in words why Pillow could not read a file."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return first_line(error)


def convert(image: Image.Image, in_chans: int) -> Image.Image:
    """Return `image` as 8-bit grey or RGB.

    16-bit grey is scaled; Pillow's own conversion would clip it to white. Transparency is dropped
    as in torchvision and timm, which keeps published accuracies comparable.

    Raises:
        ValueError: The pixels are floating-point.
    """
    if image.mode.startswith("I"):  # I;16, I;16B, ... and I, in which some 16-bit files open
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep.clip(0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError(
            "floating-point pixels are not supported; save the image with 8 or 16 bits"
        )
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(MODES[in_chans])
