"""Read image files of any kind as upright 8-bit RGB or grey, and resize them for evaluation."""

import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import ExifTags, Image

from zoo.errors import BadInput, first_line

# What Pillow finds odd in a user's file, such as damaged EXIF data, is no matter of the code.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode

# Extensions of images that Pillow may read, but that are left out of folders of images.
OTHER_FORMATS = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".ico", ".psd", ".svg")

# EXIF orientation -> how to turn the stored pixels. 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height

# An image whose resized form would be larger than this many crops is cropped before it is resized.
_MOST_CROPS = 32


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
        with open_image(source) as image:
            return convert(image, in_chans)
    # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ... on damaged files.
    except Exception as error:
        raise unreadable(name, reason(error)) from error


@contextmanager
def open_image(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image with Pillow, which reads its header; only regular files are opened.

    Raises:
        OSError: The file is a FIFO, a device or a socket (opening one might never return), is
            empty, or cannot be read.
        Exception: Pillow's decoders raise errors of many types.
    """
    if isinstance(source, str | os.PathLike):
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{kind_of(status.st_mode)}, not a regular file")
        if status.st_size == 0:
            raise OSError("the file is empty")
    with Image.open(source) as image:
        yield image


def kind_of(mode: int) -> str:
    """Return what a file is in words, from the mode that `os.stat` returns."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a file")


def image_size(path: str) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image, without decoding its pixels.

    Raises:
        BadInput: The file is missing or not an image.
    """
    try:
        with open_image(path) as image:
            turned = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
            return (image.height, image.width) if turned else image.size
    except Exception as error:  # as in `read_image`
        raise unreadable(path, reason(error)) from error


def unreadable(name: str, why: str, more: str = "") -> BadInput:
    """Return the error for an image that cannot be read.

    Args:
        name: Name of the image.
        why: The reason, in words.
        more: Other images that cannot be read.
    """
    return BadInput(
        f"cannot read image {one_line(name)} ({why}){more}; "
        "repair or remove it, or set data.skip_corrupt=true to skip such files"
    )


def one_line(name: str) -> str:
    """Return the name of a file with its line feeds and other control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


def reason(error: Exception) -> str:
    """Return in words why Pillow could not read a file."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return first_line(error)


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says.

    Cameras store the pixels as the sensor lies and note how the camera was held. An invalid
    orientation is ignored, like damaged EXIF data.
    """
    image.load()  # Pillow turns TIFF files by itself, and removes their orientation
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data raises errors of many types
        return 1
    return found if isinstance(found, int) else 1


def convert(image: Image.Image, in_chans: int) -> Image.Image:
    """Return `image` as upright 8-bit grey or RGB.

    16-bit grey is scaled; Pillow's own conversion would clip it to white. Transparency is dropped
    as in torchvision and timm, which keeps published accuracies comparable.

    Raises:
        ValueError: The pixels are floating-point.
    """
    image = upright(image)
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


def resize_and_crop(
    image: Image.Image,
    size: tuple[int, int],
    crop_pct: float,
    interpolation: Image.Resampling,
) -> Image.Image:
    """Resize the shorter side to `size / crop_pct` and crop the centre, as timm does.

    A long thin image is cropped before it is resized: scaled as a whole, one of 1 x 65,000 pixels
    would take gigabytes.

    Args:
        image: Grey or RGB.
        size: Height and width of the result in pixels.
        crop_pct: Side of the result / side of the resized image.
        interpolation: Pillow's filter.
    """
    height, width = size
    shape = _resized_shape(image.size, size, crop_pct)
    left, top = (
        round((have - want) / 2) for have, want in zip(shape, (width, height), strict=True)
    )
    if shape[0] * shape[1] <= _MOST_CROPS * max(width * height, image.width * image.height):
        if shape != image.size:
            image = image.resize(shape, interpolation)
        return image.crop((left, top, left + width, top + height))
    across, down = image.width / shape[0], image.height / shape[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    return image.resize((width, height), interpolation, box=box)


def _resized_shape(
    given: tuple[int, int], size: tuple[int, int], crop_pct: float
) -> tuple[int, int]:
    """Return width and height to resize an image of width and height `given` to."""
    resized = [math.floor(side / crop_pct) for side in size]
    width, height = given
    if resized[0] == resized[1]:
        short, long = min(width, height), max(width, height)
        other = int(resized[0] * long / short)
        return (resized[0], other) if width <= height else (other, resized[0])
    ratio = min(height / resized[0], width / resized[1])
    return round(width / ratio), round(height / ratio)
