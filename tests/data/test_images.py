"""Images of every kind are read as 8-bit RGB or grey; invalid files raise an error."""

import numpy as np
import pytest
from PIL import Image

from zoo.errors import BadInput
from zoo.images import read_image


def read(image, path, in_chans=3, **options):
    image.save(path, **options)
    return np.asarray(read_image(str(path), in_chans, str(path)))


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_png_mode_gives_the_requested_channels(picture, tmp_path, mode, in_chans):
    pixels = read(picture(1).convert(mode), tmp_path / "x.png", in_chans)
    assert pixels.shape == ((30, 40, 3) if in_chans == 3 else (30, 40))
    assert pixels.dtype == np.uint8
    assert pixels.std() > 20


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("x.png", "x.tif"):
        pixels = read(Image.fromarray(ramp), tmp_path / name, in_chans=1)
        assert np.array_equal(pixels.ravel(), np.arange(256))


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    pixels = read(red.convert("CMYK"), tmp_path / "x.jpg", quality=95)
    assert np.abs(pixels.reshape(-1, 3).mean(0) - (220, 30, 40)).max() < 6


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    pixels = read(image, tmp_path / "x.png", transparency=b"\xff\x80")
    assert (pixels == (10, 200, 30)).all()


def test_floating_point_pixels_raise(tmp_path):
    with pytest.raises(BadInput, match=r"x\.tif.*floating-point"):
        read(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "x.tif")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_truncated_file_raises(picture, tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    picture(1).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=rf"cannot read image .*x\.{extension}.*skip_corrupt") as hit:
        read_image(str(path), 3, str(path))
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize("content", [b"", b"a text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_not_an_image_raises(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"cannot read image .*x\.png \(.+\); "):
        read_image(str(path), 3, str(path))


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(BadInput, match=r"x\.png \(the file does not exist\)"):
        read_image(str(tmp_path / "x.png"), 3, str(tmp_path / "x.png"))
