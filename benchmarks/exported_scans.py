"""Compare selective scans in exported files with eager PyTorch and with ordinary operators.

    python benchmarks/exported_scans.py                           # scans of published models
    python benchmarks/exported_scans.py efficientvmamba_tiny      # whole models
    python benchmarks/exported_scans.py --threads 2

Each line is a scan or a model at batch 1 (scans: the batch of the shape). `eager` is the time in
milliseconds of the scan of this package, compiled by Numba if it is installed; of a whole model, of
the unfused model. The other columns are the times of files divided by it: in ONNX Runtime and in
OpenVINO, as exported (`ort`, `openvino`) and with scans of ordinary operators (`plain`). All are
called in turn in one process. By default the time is that of the process, which other programs do
not disturb; with several threads it is the elapsed time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from selective_scan import SHAPES, make
from torch import Tensor, nn

import zoo
from zoo import runtimes
from zoo.deploy import onnx, openvino
from zoo.deploy.spec import ExportSpec
from zoo.deploy.tracing import STATIC_SCAN
from zoo.environment import summary, versions
from zoo.ops import selective_scan


class OneScan(nn.Module):
    """A scan whose input is one tensor: u, delta, B and C, B x 1 x (2 D + 2 G N) x L."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        _, self.channels, _, self.states, self.groups = shape
        self.scan_backend = "auto"
        _, _, self.A, _, _, self.D, self.bias = map(nn.Buffer, make(shape, "cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the result, B D L."""
        sizes = [self.channels, self.channels, *[self.groups * self.states] * 2]
        u, delta, B, C = x.squeeze(1).split(sizes, dim=1)
        B, C = (w.unflatten(1, (self.groups, self.states)) for w in (B, C))
        return selective_scan(
            u, delta, self.A, B, C, self.D, delta_bias=self.bias, backend=self.scan_backend
        )


def one_scan(shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Return a module that is one scan, and an input."""
    u, delta, _, B, C, _, _ = make(shape, "cpu")
    return OneScan(shape).eval(), torch.cat([u, delta, B.flatten(1, 2), C.flatten(1, 2)], 1)[
        :, None
    ]


def whole_model(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model and an image of its published size."""
    model = zoo.create_model(name).eval()
    return model, torch.randn(1, *zoo.model_info(name)["input"]["size"])


def calls_of(model: nn.Module, x: Tensor, folder: Path, threads: int) -> dict[str, Callable]:
    """Return what is compared: the model, and its files in both runtimes."""
    fused = zoo.reparameterize(model)
    spec = ExportSpec(tuple(x.shape), dynamic_batch=x.shape[0] == 1)
    calls: dict[str, Callable[[], Any]] = {"eager": lambda: model(x)}
    for kind, scan in (("", onnx.OPERATOR_SCAN), (" plain", STATIC_SCAN)):
        for name, exporter, suffix in (("ort", onnx, ".onnx"), ("openvino", openvino, ".xml")):
            file = folder / f"{name}{kind.strip()}{suffix}"
            with mock.patch.object(onnx, "OPERATOR_SCAN", scan):
                exporter.convert(fused, file, spec)
            runtime = "onnxruntime" if name == "ort" else name
            calls[name + kind] = runtimes.load(file, runtime, threads=threads).bind(x.numpy())
    return calls


def measure(calls: dict[str, Callable], budget: float, clock: Callable[[], float]) -> dict:
    """Return the median milliseconds of each, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + budget
    while len(times["eager"]) < 7 or time.monotonic() < end:
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def main() -> None:
    """Print one line per scan or model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="default: the scans of published models alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="time per line")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    print(f"{summary()}; {', '.join(f'{k} {v}' for k, v in versions().items())}")
    print(f"threads: {given.threads}; scans: B, D, L, N, G")
    for item in given.models or SHAPES:
        model, x = whole_model(item) if isinstance(item, str) else one_scan(item)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            found = measure(calls_of(model, x, Path(folder), given.threads), given.seconds, clock)
        eager = found.pop("eager")
        ratios = ", ".join(f"{name} {value / eager:.2f}x" for name, value in found.items())
        print(f"{item!s:<24} eager {eager:.2f} ms; {ratios}", flush=True)


if __name__ == "__main__":
    main()
