"""Kill a training with SIGKILL at random moments, resume it, and compare it with a whole run.

    python benchmarks/kill_training.py [--kills 20]

Every attempt is a forked process, so packages are imported once. Prints the kills, the progress at
each, and whether `last.ckpt`, `best.ckpt` and `metrics.csv` equal those of the undisturbed run.
"""

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from zoo.command_line.composition import compose, run
from zoo.training import classification, fit  # noqa: F401  # imported once, before the forks

OVERRIDES = [
    *("model=cct_2_3x2_32", "data.image_size=32", "train.epochs=6", "train.warmup_epochs=1"),
    *("train.limit_train_batches=6", "train.limit_val_batches=2", "train.batch_size=8"),
    *("train.ema_decay=0.9", "train.mixup=0.2", "train.loggers=[csv]", "train.progress=false"),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(args.seed)
    compose("train", OVERRIDES)
    with tempfile.TemporaryDirectory() as root:
        begin = time.monotonic()
        _finish(_fork([*OVERRIDES, f"train.out={root}/whole"]))
        seconds = time.monotonic() - begin
        (whole,) = Path(root, "whole").iterdir()
        wrong = 0
        kills = attempts = 0
        while kills < args.kills:
            out = Path(root, f"killed{attempts}")
            attempts += 1
            words = [*OVERRIDES, f"train.out={out}"]
            folder, starts = None, 0
            while True:
                starts += 1
                pid = _fork(words)
                is_killed = starts <= 4 and kills < args.kills
                if is_killed:
                    time.sleep(random.uniform(0.05, 0.9) * seconds)
                    os.kill(pid, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if code == 0:
                    break
                kills += 1
                folder = next(iter(out.iterdir()), None) if out.exists() else None
                left = sorted(path.name for path in folder.rglob(".*.ckpt*")) if folder else []
                has_checkpoint = folder and (folder / "checkpoints" / "last.ckpt").exists()
                progress = _read(folder, "last")["progress"] if has_checkpoint else None
                print(f"kill {kills}: exit {code}, {progress and progress['epoch']} epochs, {left}")
                if has_checkpoint:
                    words = [f"train.resume={folder}"]
            (folder,) = (path for path in out.iterdir() if (path / "metrics.csv").exists())
            wrong += not _equal(whole, folder)
            leftovers = [path.name for path in folder.rglob(".*")]
            print(f"run {attempts}: {starts} starts, equal {_equal(whole, folder)}, {leftovers}")
    print(f"{kills} kills, {attempts} runs, {wrong} differ")
    sys.exit(wrong > 0)


def _fork(words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    code = 1
    try:
        run("train", words)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    os._exit(code)


def _finish(pid: int) -> None:
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        sys.exit("the undisturbed run failed")


def _read(folder: Path, which: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)


def _equal(whole: Path, folder: Path) -> bool:
    """Return whether two runs have the same checkpoints, but for settings, and the same metrics."""
    for which in ("last", "best"):
        ours, theirs = _read(whole, which), _read(folder, which)
        if ours["checksum"] != theirs["checksum"]:  # of all entries but the settings
            return False
    return _rows(whole) == _rows(folder)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)
        ]


if __name__ == "__main__":
    main()
