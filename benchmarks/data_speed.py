"""Compare the images per second of the data loaders of zoo and timm on the CPU.

    python benchmarks/data_speed.py --images 384 --workers 2

The script writes a folder of JPEG images. Then both loaders read whole epochs in turn, with the
same crops, flips, colour jitter and erasing. For each augmentation setting it prints the median and
the range of the ratio zoo / timm (above 1, zoo is faster), and the rates of both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader

from zoo.data.create import create_datamodule
from zoo.settings import DataConfig

SETTINGS = {
    "default": {},
    "strong": {"auto_augment": "rand-m6-mstd0.5-inc1", "color_jitter": 0.0, "re_prob": 0.25},
}


def write_folder(root: Path, count: int, size: tuple[int, int]) -> None:
    """Write `count` training images and two validation images of `size` (width, height)."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 2)):
        for index in range(number):
            folder = root / split / f"class_{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image.save(folder / f"{index}.jpg", quality=90)


def rate(loader: Iterable, count: int) -> float:
    """Return the images per second of one pass over `loader`."""
    start = time.perf_counter()
    seen = sum(len(images) for images, _ in loader)
    assert seen == count, f"{seen} images instead of {count}"
    return seen / (time.perf_counter() - start)


def loaders(root: Path, args: argparse.Namespace, keys: dict) -> tuple[Iterable, Iterable]:
    """Return the training loaders of zoo and timm with equal settings."""
    cfg = DataConfig("folder", root=str(root), num_workers=args.workers, **keys)
    data = create_datamodule(cfg, batch_size=args.batch_size)
    data.setup()
    config = data.config
    timm_loader = create_loader(
        create_dataset("", root=str(root), split="train"),
        input_size=(3, *config.image_size),
        batch_size=args.batch_size,
        is_training=True,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        color_jitter=config.color_jitter or None,
        auto_augment=config.auto_augment,
        re_prob=config.re_prob,
        interpolation=config.interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
        num_workers=args.workers,
        device=torch.device("cpu"),
    )
    return data.train_dataloader(), timm_loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=384, help="number of images, a multiple of the batch size"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(500, 375), help="width and height of the images"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), args.images, tuple(args.size))
        for name, keys in SETTINGS.items():
            zoo_loader, timm_loader = loaders(Path(folder), args, keys)
            rates = []
            for turn in range(args.rounds + 1):
                pair = [(0, zoo_loader), (1, timm_loader)][:: 1 if turn % 2 else -1]
                found = dict((which, rate(loader, args.images)) for which, loader in pair)
                rates.append((found[0], found[1]))
            rates = rates[1:]  # the first round starts the workers and fills the page cache
            ratios = [zoo / timm for zoo, timm in rates]
            print(
                f"{name}: zoo/timm {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}, {args.rounds} rounds), "
                f"zoo {statistics.median(r[0] for r in rates):.1f} images/s, "
                f"timm {statistics.median(r[1] for r in rates):.1f} images/s, "
                f"workers {args.workers}, batch {args.batch_size}, {args.size[0]} x {args.size[1]}"
            )


if __name__ == "__main__":
    main()
