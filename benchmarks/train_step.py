"""Compare the training step of zoo with that of timm's `train.py`, for five models.

    python benchmarks/train_step.py

timm's `train.py` is no part of the installed package, so its step is written here as in
github.com/huggingface/pytorch-image-models (train_one_epoch): forward, loss, backward, clipping,
optimizer, schedule, and the average of the loss, made by timm's own functions. zoo's step is that
of its loop. Both train the same model of timm with the same settings on the same batches in memory,
in turn, in one process with one thread. A round is `--steps` steps of each; the ratio of a model is
the median of five rounds, in images per second of processor time, zoo / timm: above 1, zoo is
faster.

Loading and augmentation are measured apart: both loaders read the same folder of JPEG files in this
process, in turn, in wall time.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_speed
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, dispatch_clip_grad

from zoo.command_line.composition import parse
from zoo.environment import describe_machine, versions
from zoo.training import assembly, builders, launch
from zoo.training.loop import Loop
from zoo.training.method import TrainingMethod

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "train_step.json"
MODELS = (
    "mobilenetv3_small_100", "resnet18", "efficientnet_b0", "convnext_atto", "mobilevitv2_050",
)  # fmt: skip
WARM_UP = 2  # steps
CLIP = 1.0


def main() -> None:
    """Measure, print a line for each model, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of timm models")
    parser.add_argument("--size", type=int, default=96, help="height and width in pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps of each side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="JPEG files for the loaders")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(args).items() if key not in ("models", "out")}
    record: dict[str, Any] = {"command": "python benchmarks/train_step.py", "settings": settings}
    record["steps"] = [steps_of(name, args) for name in args.models]
    ratios = [row["ratio"] for row in record["steps"]]
    record["geometric_mean"] = statistics.geometric_mean(ratios)
    print(f"geometric mean of {len(ratios)} models: {record['geometric_mean']:.3f}")
    record["loading"] = loading(args)
    record |= {"machine": describe_machine(), "versions": versions()}
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def steps_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the rates of both sides for a model, and their ratio."""
    ours, data = zoos_step(name, args)
    theirs = timms_step(name, args, data.num_classes)
    images, targets = next(iter(data.train_dataloader()))
    sides = {"zoo": ours, "timm": theirs}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for step in sides.values():
        timed(step, images, targets, WARM_UP)
    for number in range(args.rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for side in order:
            seconds = timed(sides[side], images, targets, args.steps)
            rates[side].append(args.steps * len(images) / seconds)
    row = summary({"model": name}, rates)
    print(f"{name}: {row['ratio']:.3f} ({row['zoo']:.1f} against {row['timm']:.1f} images/s)")
    return row


def summary(about: dict[str, Any], rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median rates and the median of the rounds' ratios, zoo / timm."""
    ratios = [a / b for a, b in zip(rates["zoo"], rates["timm"], strict=True)]
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return {**about, "ratio": statistics.median(ratios), "ratios": ratios, **medians}


def timed(step: Callable[..., Any], images: Any, targets: Any, count: int) -> float:
    """Return the processor time of `count` steps in seconds."""
    begin = time.process_time()
    for _ in range(count):
        step(images, targets)
    return time.process_time() - begin


def zoos_step(name: str, args: argparse.Namespace) -> tuple[Callable[..., Any], Any]:
    """Return the step of zoo's loop, and the data module."""
    run, _ = parse(
        "train",
        [
            f"model=timm/{name}", "data=digits_in_photos", f"data.image_size={args.size}",
            f"data.train_images={4 * args.batch_size}", "data.val_images=8",
            f"train.batch_size={args.batch_size}", f"train.clip_grad={CLIP}",
            "train.warmup_epochs=0",
        ],
    )  # fmt: skip
    fabric = launch.launch(run.train)
    data = builders.build_data(run, fabric, None)
    quiet = logging.getLogger("quiet")
    quiet.disabled = True
    components = assembly.build_components(run, data, fabric, quiet, False, TrainingMethod())
    loop = Loop(fabric, components, run.train, None, quiet)
    loop._enter_train_mode()

    def step(images: Any, targets: Any) -> None:
        loop._forward_backward(0, images, targets, 1, True)
        loop._checked_update()

    return step, data


def timms_step(name: str, args: argparse.Namespace, classes: int) -> Callable[..., Any]:
    """Return the step of timm's train.py."""
    model = timm.create_model(name, num_classes=classes).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=10, updates_per_epoch=4, step_on_epochs=False
    )
    loss_fn, losses, updates = torch.nn.CrossEntropyLoss(), AverageMeter(), [0]

    def step(images: Any, targets: Any) -> None:
        images, targets = images.to("cpu"), targets.to("cpu")
        loss = loss_fn(model(images), targets)
        loss.backward()
        dispatch_clip_grad(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), len(images))
        updates[0] += 1
        scheduler.step_update(num_updates=updates[0], metric=losses.avg)

    return step


def loading(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rates of both loaders for each augmentation, and their ratios."""
    rows = []
    options = argparse.Namespace(batch_size=args.batch_size, workers=0, size=args.size)
    with tempfile.TemporaryDirectory() as folder:
        data_speed.write_folder(Path(folder), args.images, (256, 192))
        for name, keys in data_speed.SETTINGS.items():
            rates: dict[str, list[float]] = {"zoo": [], "timm": []}
            sides = dict(zip(rates, data_speed.loaders(Path(folder), options, keys), strict=True))
            count = args.images // args.batch_size * args.batch_size
            for number in range(args.rounds + 1):
                for side in rates if number % 2 == 0 else reversed(list(rates)):
                    rate = data_speed.rate(sides[side], count)
                    if number:  # the first round warms up
                        rates[side].append(rate)
            row = summary({"augmentation": name}, rates)
            print(f"loading, {name}: {row['ratio']:.3f} ({row['zoo']:.0f} images/s zoo)")
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
