"""Measure what several processes cost the training loop: images per second with 1, 2 and 4.

    python benchmarks/process_scaling.py [--rounds 3] [--out results/process_scaling.json]

The same run is started with 1, 2 and 4 processes on the CPU, one thread each, in turn. On a machine
with fewer cores than processes, they share the cores, so the images per second of all processes
together cannot grow beyond the cores. The overhead of the loop is therefore measured on the
processor time as well: the user and system time of all processes per image, compared with one
process. It has the gradients that are exchanged, the agreement on signals, and the data sampler.
The time of a run of one epoch is subtracted from that of several, so starting does not count.
"""

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = (1, 2, 4)
SETTINGS = [
    *("model=cct_2_3x2_32", "data=digits", "data.image_size=32", "data.num_workers=0"),
    *("train.accelerator=cpu", "train.batch_size=16", "train.warmup_epochs=0"),
    *("train.limit_val_batches=1", "train.loggers=[csv]", "train.progress=false"),
]
BATCHES = 20  # of each process in an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: dict[int, list[dict[str, float]]] = {number: [] for number in PROCESSES}
    for _ in range(args.rounds):
        for number in PROCESSES:
            short, long = (measure(number, epochs) for epochs in (1, args.epochs))
            images = (args.epochs - 1) * BATCHES * 16 * number
            wall, cpu = (b - a for a, b in zip(short, long, strict=True))
            rows[number].append(
                {"images_per_s": images / wall, "cpu_ms_per_image": 1e3 * cpu / images}
            )
            print(number, rows[number][-1], flush=True)
    record = summary(args, rows)
    for number, row in record["processes"].items():
        print(
            f"{number} processes: {row['images_per_s']:.0f} images/s,"
            f" {row['cpu_ms_per_image']:.2f} ms of processor time per image,"
            f" {row['cpu_ratio']:.3f} times that of one process"
        )
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(processes: int, epochs: int) -> tuple[float, float]:
    """Return the wall time and the processor time of a run, in seconds."""
    with tempfile.TemporaryDirectory() as out, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        command += [f"--master_port={port}", "train.py", *SETTINGS, f"train.epochs={epochs}"]
        command += [f"train.limit_train_batches={BATCHES}", f"train.out={out}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, cpu


def summary(args: argparse.Namespace, rows: dict[int, list[dict[str, float]]]) -> dict:
    """Return the record: medians over the rounds, and ratios to one process of the same round."""
    processes = {}
    for number, found in rows.items():
        ratios = [
            row["cpu_ms_per_image"] / one["cpu_ms_per_image"]
            for row, one in zip(found, rows[1], strict=True)
        ]
        processes[str(number)] = {
            "images_per_s": statistics.median(row["images_per_s"] for row in found),
            "cpu_ms_per_image": statistics.median(row["cpu_ms_per_image"] for row in found),
            "cpu_ratio": statistics.median(ratios),
            "cpu_ratios": ratios,
        }
    return {
        "settings": [*SETTINGS, f"train.limit_train_batches={BATCHES}"],
        "rounds": args.rounds,
        "epochs": args.epochs,
        "processes": processes,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
