"""Fixtures that write small data sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def make_picture(number: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """Return noise that is unique to `number`; `size` is (width, height) in pixels."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`make_picture`."""
    return make_picture


@pytest.fixture
def write_folder(tmp_path) -> Callable[..., Path]:
    """Write `<root>/<split>/<class>/<number>.png`; an empty split name gives `<root>/<class>`."""

    def write(splits=("train", "val"), classes=("cat", "dog"), count=6) -> Path:
        root = tmp_path / "images"
        for s, split in enumerate(splits):
            for c, name in enumerate(classes):
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    make_picture(100 * s + 10 * c + i).save(folder / f"{i}.png")
        return root

    return write
