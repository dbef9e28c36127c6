"""Compare the speed and peak memory of the selective scan with its public reference.

    python benchmarks/selective_scan.py                      # shapes of published models
    python benchmarks/selective_scan.py --backends auto
    python benchmarks/selective_scan.py --device cuda --backends auto

The baseline is the algorithm of `selective_scan_ref` in state-spaces/mamba, reimplemented: it
computes the decays and inputs of all steps at once, then loops over the steps. Each backend is
timed in turn with the baseline in one process, so the ratios are valid on a busy machine. Memory is
the peak rise of the process memory (on a GPU, of PyTorch's allocator) during a call, divided by the
size of inputs and output.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops import backends, selective_scan
from zoo.ops.scan import auto_backend
from zoo.profiling.memory import peak_memory

SHAPES = (  # batch, channels, length, states, groups
    (1, 384, 784, 16, 4),
    (1, 448, 144, 1, 2),
    (1, 640, 1024, 1, 2),
    (1, 64, 4096, 16, 1),
    (8, 384, 196, 16, 4),
)


def reference(u, delta, A, B, C, D, bias) -> Tensor:
    """The baseline: the algorithm of selective_scan_ref in state-spaces/mamba."""
    per_group = u.shape[1] // B.shape[1]
    delta = F.softplus(delta + bias[:, None])
    B, C = (x.repeat_interleave(per_group, dim=1) for x in (B, C))
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bdnl,bdl->bdln", delta, B, u)
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    outputs = []
    for step in range(u.shape[2]):
        state = decays[:, :, step] * state + inputs[:, :, step]
        outputs.append(torch.einsum("bdn,bdn->bd", state, C[..., step]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def make(shape: tuple[int, ...], device: str) -> list[Tensor]:
    """Return random u, delta, A, B, C, D and bias, in the range of a trained model."""
    batch, channels, length, states, groups = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    weights = [draw(batch, groups, states, length) for _ in range(2)]
    sequences = [draw(batch, channels, length) for _ in range(2)]
    inputs = [*sequences, A, *weights, draw(channels), draw(channels) - 3]
    return [x.to(device) for x in inputs]


def scan_with(backend: str) -> Callable[..., Tensor]:
    """Return a scan by `backend` as a function with the arguments of `reference`."""
    return lambda u, delta, A, B, C, D, bias: selective_scan(
        u, delta, A, B, C, D, delta_bias=bias, backend=backend
    )


def forward(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Run one forward pass."""
    with torch.no_grad():
        function(*inputs)


def forward_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Run one forward and backward pass."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    torch.autograd.grad(function(*inputs).sum(), inputs)


def seconds(call: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one call, including its work on a GPU."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speedup(run: Callable, function: Callable, inputs: list[Tensor], budget: float) -> float:
    """Return the median ratio of the time of the baseline to that of `function`."""
    run(function, inputs)
    ratios: list[float] = []
    end = time.perf_counter() + budget
    while len(ratios) < 3 or (time.perf_counter() < end and len(ratios) < 30):
        slow, fast = (
            min(seconds(lambda: run(each, inputs), inputs[0].device) for _ in range(3))  # noqa: B023
            for each in (reference, function)
        )
        ratios.append(slow / fast)
    return statistics.median(ratios)


def memory(names: list[str], device: str) -> list[list[float]]:
    """Return the peak memory per shape and backend, divided by the size of inputs and output.

    The last value of each shape is the baseline. This must run in a separate process, because it
    makes the C library return every freed tensor to the system. Otherwise a call that reuses freed
    memory would show no peak, but returning memory is slow.
    """
    mmap_threshold = -3  # parameter M_MMAP_THRESHOLD of mallopt
    ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 14)
    table = []
    for shape in SHAPES:
        inputs = make(shape, device)
        size = 4 * (sum(x.numel() for x in inputs) + inputs[0].numel())
        peaks = [
            peak_memory(lambda: forward(function, inputs), device)  # noqa: B023
            for function in [*(scan_with(name) for name in names), reference]
        ]
        table.append([math.nan if peak is None else peak / size for peak in peaks])
    return table


def main() -> None:
    """Print one line per shape and backend, then the geometric means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["auto", "multi_level", "sequential"])
    parser.add_argument("--seconds", type=float, default=5.0, help="time per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    available = ", ".join(name for name, usable in backends().items() if usable)
    print(f"{args.threads} threads; available: {available}; auto is {auto_backend(args.device)}")
    print(
        f"{'B, D, L, N, G':<24}{'backend':<12}{'forward':>10}{'both':>10}"
        f"{'peak/(in+out)':>15}{'ref':>8}"
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peaks = pool.submit(memory, args.backends, args.device).result()
    forwards: dict[str, list[float]] = {name: [] for name in args.backends}
    trainings: dict[str, list[float]] = {name: [] for name in args.backends}
    for shape, (*growths, baseline) in zip(SHAPES, peaks, strict=True):
        inputs = make(shape, args.device)
        for name, growth in zip(args.backends, growths, strict=True):
            forwards[name].append(speedup(forward, scan_with(name), inputs, args.seconds))
            trainings[name].append(speedup(forward_backward, scan_with(name), inputs, args.seconds))
            print(
                f"{shape!s:<24}{name:<12}{forwards[name][-1]:>9.1f}x{trainings[name][-1]:>9.1f}x"
                f"{growth:>15.2f}{baseline:>8.1f}",
                flush=True,
            )
    for name in args.backends:
        means = [math.exp(statistics.fmean(map(math.log, x[name]))) for x in (forwards, trainings)]
        lowest = min(forwards[name])
        print(
            f"{name}: geometric mean {means[0]:.1f}x forward (minimum {lowest:.1f}x),"
            f" {means[1]:.1f}x both"
        )


if __name__ == "__main__":
    main()
