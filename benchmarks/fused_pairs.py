"""Is a fused model ever slower than the unfused one? Both forms in turn, in one process.

    python benchmarks/fused_pairs.py                   # every model that results/ reads as slower
    python benchmarks/fused_pairs.py --models emo_5m   # these models

Results of one form after the other differ by several percent from the state of the machine alone.
Here the two forms are called in turn on one thread, each time 32 pairs of calls, and both
are built anew at least six times, because where a model lies in memory changes its latency. Time is
processor time, so that other processes disturb less. The record has the ratio fused / unfused with
its 95 % interval, in eager PyTorch and in ONNX Runtime. A model that is done is not measured again.
"""

import argparse
import contextlib
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.environment import describe_machine, versions
from zoo.profiling.gate import compare_until_clear
from zoo.profiling.latency import random_batch
from zoo.reparam import randomize_parameters
from zoo.runtimes.artefacts import LoadedArtefact

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results" / "models.jsonl"
OUT = ROOT / "results" / "fused_pairs.json"
SLOWER = 0.03  # share by which a fused model of results/ must read slower to be measured
RUNTIMES = ("eager", "onnxruntime")


def main() -> None:
    """Measure, print a line for each model and runtime, and write the record after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help="default: those that results/ reads as slower")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument(
        "--looks", type=int, nargs="+", default=[6, 12], help="builds of both forms"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"rows": []}
    if args.out.exists():
        found = json.loads(args.out.read_text(encoding="utf-8"))
    found |= {"command": "python benchmarks/fused_pairs.py", "machine": describe_machine()}
    found["versions"] = versions()
    done = {(row["model"], row["runtime"]) for row in found["rows"]}
    for name in args.models or slower_in_results():
        for runtime in args.runtimes:
            if (name, runtime) in done:
                continue
            row = measured(name, runtime, args.looks)
            found["rows"].append(row)
            print(f"{name} {runtime}: {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
            args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def slower_in_results() -> list[str]:
    """Return the models whose fused form reads slower in the records of this repository."""
    latency: dict[tuple[str, bool], float] = {}
    for line in RECORDS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["runtime"] == "eager":
            latency[row["model"], row["fused"]] = row["p50_ms"]
    names = {name for name, _ in latency}
    ratios = {name: latency[name, True] / latency[name, False] for name in names}
    return sorted((name for name in names if ratios[name] > 1 + SLOWER), key=lambda n: -ratios[n])


def measured(name: str, runtime: str, looks: list[int]) -> dict[str, Any]:
    """Return the ratio of the latencies of the fused and the unfused form."""
    size = (1, *zoo.model_info(name)["input"]["size"])
    plain = randomize_parameters(zoo.create_model(name)).eval()
    fused = zoo.reparameterize(copy.deepcopy(plain))
    batch = random_batch(size)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if runtime == "onnxruntime":
            files = [
                zoo.export(model, "onnx", Path(folder) / str(i), input_size=size, fuse=False)
                for i, model in enumerate((plain, fused))
            ]

            @contextlib.contextmanager
            def opened() -> Iterator[Any]:
                runs = [LoadedArtefact(file.path, file.manifest, threads=1) for file in files]
                yield warmed([lambda run=run: run(batch) for run in runs])
        else:
            image = torch.from_numpy(batch)

            @contextlib.contextmanager
            def opened() -> Iterator[Any]:
                models = [copy.deepcopy(model) for model in (plain, fused)]
                yield warmed([lambda model=model: model(image) for model in models])

        pair = compare_until_clear(opened, 0.0, time.process_time, looks)
    return {
        "model": name, "runtime": runtime, "input": list(size), "ratio": pair.ratio,
        "low": pair.low, "high": pair.high, "builds": pair.loads, "pairs": pair.n,
        "unfused_ms": pair.old_ms, "fused_ms": pair.new_ms,
    }  # fmt: skip


def warmed(calls: list[Any]) -> tuple[Any, Any]:
    """Return two functions after three calls of each."""
    for _ in range(3):
        for call in calls:
            call()
    return calls[0], calls[1]


if __name__ == "__main__":
    main()
