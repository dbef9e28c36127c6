"""What the experiments with methods have in common: options, trained bases, intervals, records."""

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

import zoo

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"


def options(name: str, about: str, epochs: int) -> argparse.Namespace:
    """Return the options of the command line, and make the folder `out` for finished parts."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--quick", action="store_true", help="one epoch, two seeds, no record")
    found = parser.parse_args()
    if found.quick:
        found.seeds, found.epochs = 2, 1
    found.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return found


def trained(name: str, seed: int, options: argparse.Namespace, side: int) -> torch.nn.Module:
    """Return a model of a seed in evaluation mode, trained once on `digits` of `side` pixels."""
    out = options.out / f"seed{seed}"
    made = sorted(out.glob("*/checkpoints/best.ckpt"))
    if not made:
        zoo.train(
            model=name, data="digits", epochs=options.epochs, seed=seed, progress=False,
            **{"train.out": str(out), "data.image_size": side},
        )  # fmt: skip
        made = sorted(out.glob("*/checkpoints/best.ckpt"))
    model = zoo.create_model(name, num_classes=10)
    zoo.load_weights(model, made[0].parents[1])
    return model.eval()


def once(folder: Path, name: str, compute: Callable[[], Any]) -> Any:
    """Return a part of the record, computed once."""
    file = folder / f"{name}.json"
    if not file.exists():
        found = compute()
        file.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half of its 95 % interval (Student's t)."""
    numbers = np.asarray(values)
    spread = numbers.std(ddof=1) / len(numbers) ** 0.5
    return float(numbers.mean()), float(student.ppf(0.975, len(numbers) - 1) * spread)


def write(name: str, record: dict[str, Any]) -> None:
    """Write the record of an experiment to results/methods."""
    text = json.dumps(record, indent=1) + "\n"
    (ROOT / "results" / "methods" / f"{name}.json").write_text(text, encoding="utf-8")
