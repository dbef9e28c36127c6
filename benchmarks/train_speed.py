"""Compare the training speed of zoo with timm's `train.py` at equal settings.

    python benchmarks/train_speed.py --timm-train <timm checkout>/train.py

Both train the same timm model on the same generated images, with the same batch size, image size,
augmentation, optimizer, workers and threads, in turn and in separate processes. The images per
second of the second epoch include loading, forward, backward and update. The ratio is zoo / timm;
above 1, zoo is faster.
"""

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 10


def main() -> None:
    """Measure the speeds, print the ratio, and write the record if requested."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_images(data, args.batches * args.batch_size, args.size)
        rates: dict[str, list[float]] = {"ours": [], "timm": []}
        for round_number in range(args.rounds):
            out = Path(folder) / str(round_number)
            rates["ours"].append(ours(args, data, out))
            rates["timm"].append(timms(args, data, out))
            print(f"round {round_number + 1}: {rates['ours'][-1]:.1f} images/s zoo,", end=" ")
            print(f"{rates['timm'][-1]:.1f} images/s timm", flush=True)
    record = summary(args, rates)
    print(
        f"ratio zoo / timm: {record['ratio']:.3f}"
        f" (rounds: {', '.join(f'{ratio:.3f}' for ratio in record['ratios'])};"
        f" fastest rounds: {record['ratio_of_best']:.3f})"
    )
    if args.out:
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--timm-train", required=True, type=Path, help="path of train.py in a timm checkout"
    )
    parser.add_argument("--model", default="efficientformer_l1", help="name of a timm model")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="batches per epoch")
    parser.add_argument("--workers", type=int, default=1, help="at least 1, which timm needs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--out", help="JSON file to write the record to")
    return parser.parse_args()


def make_images(root: Path, count: int, size: int) -> None:
    """Write `count` training images and a few validation images."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("val", CLASSES)):
        for index in range(number):
            folder = root / split / str(index % CLASSES)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.jpg")


def run(command: list[str], threads: int, folder: Path) -> str:
    """Run one training process and return its output."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def ours(args: argparse.Namespace, data: Path, out: Path) -> float:
    """Return the images/s of zoo."""
    folder = out / "ours"
    command = [sys.executable, str(ROOT / "train.py"), f"model=timm/{args.model}", "data=folder"]
    command += [
        f"data.root={data}",
        f"data.image_size={args.size}",
        f"data.num_workers={args.workers}",
        "data.interpolation=bicubic",
        f"train.batch_size={args.batch_size}",
        "train.epochs=2",
        "train.warmup_epochs=0",
        f"train.accelerator={args.device}",
        f"train.channels_last={args.channels_last}",
        f"train.out={folder}",
    ]
    run(command, args.threads, folder)
    (metrics,) = folder.glob("*/metrics.csv")
    with metrics.open(newline="", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[1]["images_per_s"])


def timms(args: argparse.Namespace, data: Path, out: Path) -> float:
    """Return the images/s that timm's train.py prints as the average of the second epoch."""
    folder = out / "timm"
    command = [sys.executable, str(args.timm_train.resolve()), "--data-dir", str(data)]
    command += ["--model", args.model, "--num-classes", str(CLASSES), "--img-size", str(args.size)]
    command += ["--batch-size", str(args.batch_size), "--workers", str(args.workers)]
    command += ["--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05", "--epochs", "2"]
    command += ["--sched-on-updates", "--warmup-epochs", "0", "--train-interpolation", "bicubic"]
    command += ["--smoothing", "0", "--device", args.device, "--log-interval", "1"]
    command += ["--output", str(folder)]
    command += ["--channels-last"] if args.channels_last else []
    printed = run(command, args.threads, folder)
    averages = re.findall(r"Train: 1 \[.*?Time: .*?/s +\([\d.]+s, +([\d.]+)/s\)", printed)
    if not averages:
        sys.exit(f"{args.timm_train} printed no images/s:\n{printed[-2000:]}")
    return float(averages[-1])


def summary(args: argparse.Namespace, rates: dict[str, list[float]]) -> dict[str, object]:
    """Return the record of a measurement."""
    import timm
    import torch

    ratios = [a / b for a, b in zip(rates["ours"], rates["timm"], strict=True)]
    return {
        "command": " ".join(sys.argv),
        "model": f"timm/{args.model}",
        "settings": {k: v for k, v in vars(args).items() if k not in ("timm_train", "out")},
        "images_per_s": rates,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "ratio_of_best": max(rates["ours"]) / max(rates["timm"]),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


if __name__ == "__main__":
    main()
