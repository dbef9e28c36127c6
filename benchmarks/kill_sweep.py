"""Kill the workers of a sweep with SIGKILL at random moments, and compare the tables.

    python benchmarks/kill_sweep.py [--kills 30] [--workers 4] [--checkouts FOLDER FOLDER]

One worker trains a sweep of 2 learning rates and 4 seeds undisturbed. Then several workers train an
equal sweep in another folder; one of them is killed at a random moment and replaced, until there
were so many kills. The tables must be equal, byte for byte, and so must the weights.

Workers are forked, so packages are imported once. With --checkouts they are processes that are
started in these checkouts in turn, which share the folder as two machines would.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from zoo.command_line.composition import compose, run
from zoo.sweeping.cells import cells_of
from zoo.training import classification, fit  # noqa: F401  # imported once, before the forks

SETTINGS = [
    *("model=simplenet_cifar_310k", "data=digits", "data.image_size=16", "data.num_workers=0"),
    *("train.epochs=6", "train.warmup_epochs=1", "train.batch_size=8", "train.ema_decay=0.9"),
    *("train.limit_train_batches=12", "train.limit_val_batches=8", "train.mixup=0.2"),
    *("train.loggers=[csv]", "train.progress=false", "train.log_every=1"),
    *("train.seed=range(4)", "train.lr=1e-3,1e-2"),
]
TABLES = ("table.md", "table.csv", "cells.csv")
Start = Callable[[Path, int], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--checkouts", nargs="+", type=Path, default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    compose("train", [word for word in SETTINGS if "range" not in word and "," not in word])

    def start(sweep: Path, number: int) -> int:
        words = [f"train.sweep={sweep}", *([] if sweep.exists() else SETTINGS)]
        if args.checkouts:
            return _process(words, args.checkouts[number % len(args.checkouts)].resolve())
        return _fork(words)

    with tempfile.TemporaryDirectory() as root:
        whole, killed = Path(root, "whole"), Path(root, "killed")
        begin = time.monotonic()
        if _code(start(whole, 0)) != 0:
            sys.exit("the undisturbed sweep failed")
        seconds = time.monotonic() - begin
        print(f"undisturbed: {seconds:.0f} s by one worker", flush=True)
        turns = _disturb(killed, start, args, seconds)
        equal = {name: _same(whole / name, killed / name) for name in TABLES}
        weights = [_checksum(a) == _checksum(b) for a, b in _pairs(whole, killed)]
        print((killed / "table.md").read_text())
        print(
            f"{args.kills} kills of {args.workers} workers, {turns} turns for {len(weights)} runs"
        )
        print("tables equal:", equal, "- weights equal:", f"{sum(weights)} of {len(weights)}")
        sys.exit(not (all(equal.values()) and all(weights)))


def _disturb(sweep: Path, start: Start, args: argparse.Namespace, seconds: float) -> int:
    """Train a sweep with kills; return how many turns its cells took."""
    random.seed(args.seed)
    workers = [start(sweep, 0)]
    while not cells_of(sweep):
        time.sleep(0.1)
    time.sleep(2)  # until all cells are there
    workers += [start(sweep, number) for number in range(1, args.workers)]
    kills, begin = 0, time.monotonic()
    while kills < args.kills:
        cells = cells_of(sweep)
        is_late = sum(c.is_finished() for c in cells) * args.kills > kills * len(cells)
        time.sleep(random.uniform(0.2, 1.8) * seconds / args.kills * (0.1 if is_late else 1))
        which = random.randrange(len(workers))
        os.kill(workers[which], signal.SIGKILL)
        if _code(workers[which]) == 0:
            sys.exit(f"the sweep ended after {kills} kills; give fewer --kills")
        kills += 1
        workers[which] = start(sweep, which)
        done = sum(cell.is_finished() for cell in cells_of(sweep))
        print(f"kill {kills} after {time.monotonic() - begin:.1f} s: {done} finished", flush=True)
    codes = [_code(pid) for pid in workers]
    if any(codes):
        sys.exit(f"workers ended with {codes}")
    return sum(len(list(cell.folder.glob("*.turn"))) for cell in cells_of(sweep))


def _fork(words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    code = 1
    try:
        run("train", words)
        code = 0
    finally:
        os._exit(code)


def _process(words: list[str], checkout: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zoo", "train", *words]
    null = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=checkout, env=environment, stdout=null, stderr=null).pid


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _pairs(one: Path, other: Path) -> list[tuple[Path, Path]]:
    """Return the folders of equal runs in two sweeps."""
    return [(cell.finished, other / cell.finished.relative_to(one)) for cell in cells_of(one)]


def _checksum(run_folder: Path) -> str:
    """Return the checksum of the last checkpoint: of all its entries but the settings."""
    return torch.load(run_folder / "checkpoints/last.ckpt", weights_only=True)["checksum"]


if __name__ == "__main__":
    main()
