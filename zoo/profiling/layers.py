"""Profile the layers of a model: time, MACs and bytes of each, and what limits its speed.

The same run measures two limits of the machine: the MACs per second of a large matrix product and
the bytes per second of a large copy. Following the roofline model (Williams et al., 2009), a layer
is compute-bound or memory-bound, depending on which limit results in the longer time. A layer that
takes much longer than both is bound by overhead: it does too little work per operator call.
"""

import contextlib
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from zoo import runtimes
from zoo.counting.count import count
from zoo.counting.hooks import module_callbacks
from zoo.counting.traffic import measure_traffic
from zoo.display import Displayed
from zoo.profiling.latency import random_batch

OVERHEAD = 10.0  # a layer this many times slower than both limits is bound by overhead
_SIDE = 1024  # size of the matrices of the matrix product
_COPIED = 1 << 26  # bytes of the copy: more than fits into caches


@dataclass(frozen=True)
class Roofline:
    """The measured limits of a machine.

    Attributes:
        gmacs_per_s: 10^9 MACs per second of a 1024 x 1024 matrix product.
        gbytes_per_s: 10^9 bytes read and written per second by a copy of 64 MiB.
    """

    gmacs_per_s: float
    gbytes_per_s: float


@dataclass(frozen=True)
class Layer:
    """The cost of one module, without the modules that it calls.

    Attributes:
        name: Dotted name of the module; `""` is the model.
        type: Its class; for convolutions with kernel size and grouping.
        ms: Median time over the passes.
        macs: Multiply-accumulates.
        params: Number of parameters that the module owns directly.
        bytes: Bytes that its operators read and write.
        gmacs_per_s: 10^9 MACs per second.
        gbytes_per_s: 10^9 bytes per second.
        bound: What limits its speed: `"compute"`, `"memory"` or `"overhead"`.
    """

    name: str
    type: str
    ms: float
    macs: int
    params: int
    bytes: int
    gmacs_per_s: float
    gbytes_per_s: float
    bound: str


@dataclass(frozen=True, repr=False)
class Layers(Displayed):
    """The layers of a model in order of execution, and the limits of the machine.

    Attributes:
        layers: The modules that call operators directly.
        roofline: The limits of the machine.
        total_ms: Time of the whole model in the same passes, including the cost of profiling.
    """

    layers: list[Layer]
    roofline: Roofline
    total_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as a dictionary that JSON can encode."""
        return asdict(self)

    def __str__(self) -> str:
        kinds = list(self.by_type().items())[:3]
        slowest = ", ".join(f"{kind} {values['ms']:.2f} ms" for kind, values in kinds)
        return f"{len(self.layers)} layers, {self.total_ms:.2f} ms; slowest types: {slowest}"

    def rows(self) -> list[tuple[str, str]]:
        """Return the time of each type of layer, for display."""
        return [(kind, f"{values['ms']:.3f} ms") for kind, values in self.by_type().items()]

    def by_type(self) -> dict[str, dict[str, float]]:
        """Return total ms, macs, bytes and layers of each type of layer, the slowest type first."""
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for layer in self.layers:
            sums[layer.type].update(ms=layer.ms, macs=layer.macs, bytes=layer.bytes, layers=1)  # type: ignore[call-overload]
        ordered = sorted(sums.items(), key=lambda item: -item[1]["ms"])
        return {kind: dict(values) for kind, values in ordered}


def profile_layers(
    model: nn.Module,
    input_size: Sequence[int] = (1, 3, 224, 224),
    *,
    threads: int | None = None,
    dtype: str | None = None,
    channels_last: bool = False,
    passes: int = 20,
) -> Layers:
    """Measure the time, MACs and bytes of every layer of a model in PyTorch.

    The model does not change.

    Args:
        model: Any module whose `forward` takes one tensor.
        input_size: B C H W of the random input.
        threads: Number of threads of a call; None uses PyTorch's setting.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None keeps that of the model.
        channels_last: Whether to store images and weights in NHWC layout.
        passes: Number of measured forward passes, after three passes to warm up.

    Raises:
        BadInput: An argument is invalid, or the model does not run on this input size.
        UncountedOperator: The model runs an operator that has no rule.
    """
    batch = random_batch(input_size)
    macs = count(model, tuple(batch.shape)).own_macs()
    settings = {"threads": threads, "dtype": dtype, "channels_last": channels_last}
    loaded: Any = runtimes.load(model, "eager", **settings)
    example = loaded.bind(batch).args[0] if not loaded.device.startswith("cuda") else None
    if example is None:
        example = torch.from_numpy(batch).to(next(loaded.model.parameters()))
    with loaded.process_settings():
        moved = measure_traffic(loaded.model, example).by_module
        order, own_seconds, total = _time_modules(loaded.model, example, passes)
        roofline = measure_roofline(example)
    modules = dict(loaded.model.named_modules())
    layers = []
    for name in order:
        if macs[name] or moved.get(name):
            cost = own_seconds[name], macs[name], moved.get(name, 0)
            layers.append(_layer(name, modules[name], *cost, roofline))
    return Layers(layers, roofline, total * 1e3)


def measure_roofline(like: torch.Tensor) -> Roofline:
    """Measure the limits of this machine, with the dtype and on the device of `like`."""
    a = torch.rand(_SIDE, _SIDE).to(like)
    product = torch.empty_like(a)
    source = torch.zeros(_COPIED // like.element_size()).to(like)
    target = torch.empty_like(source)
    gemm = _fastest(lambda: torch.mm(a, a, out=product), like.is_cuda)
    copy = _fastest(lambda: target.copy_(source), like.is_cuda)
    return Roofline(_SIDE**3 / gemm / 1e9, 2 * _COPIED / copy / 1e9)


def comparison_table(profiles: dict[str, Layers]) -> Table:
    """Return a table with one row per type of layer and one group of columns per model.

    It shows why a model with fewer MACs may be slower: which types of layers take its time, and how
    fast they run.
    """
    table = Table(title="time by type of layer")
    table.add_column("layer type")
    for name in profiles:
        for unit in ("ms", "GMACs", "GMACs/s", "GB/s"):
            table.add_column(f"{name}\n{unit}", justify="right")
    kinds = {name: profile.by_type() for name, profile in profiles.items()}
    all_kinds = dict.fromkeys(kind for by_kind in kinds.values() for kind in by_kind)
    for kind in sorted(
        all_kinds, key=lambda k: -max(t.get(k, {}).get("ms", 0) for t in kinds.values())
    ):
        cells = [_cells(kinds[name].get(kind)) for name in profiles]
        table.add_row(kind, *(cell for row in cells for cell in row))
    sums = []
    for profile in profiles.values():
        total = Counter()
        for values in profile.by_type().values():
            total.update(values)
        sums += _cells(total)
    table.add_section()
    table.add_row("all", *sums)
    return table


def _cells(row: Any) -> list[str]:
    if not row:
        return [""] * 4
    seconds = row["ms"] / 1e3
    rates = (row["macs"] / seconds / 1e9, row["bytes"] / seconds / 1e9) if seconds else (0, 0)
    return [f"{row['ms']:.2f}", f"{row['macs'] / 1e9:.3f}", *(f"{rate:.1f}" for rate in rates)]


def _layer(
    name: str, module: nn.Module, seconds: float, macs: int, moved: int, roofline: Roofline
) -> Layer:
    compute, memory = macs / roofline.gmacs_per_s / 1e9, moved / roofline.gbytes_per_s / 1e9
    bound = "memory" if memory > compute else "compute"
    if seconds > OVERHEAD * max(compute, memory):
        bound = "overhead"
    return Layer(
        name=name,
        type=kind_of(module),
        ms=seconds * 1e3,
        macs=macs,
        params=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        bytes=moved,
        gmacs_per_s=macs / seconds / 1e9 if seconds else 0.0,
        gbytes_per_s=moved / seconds / 1e9 if seconds else 0.0,
        bound=bound,
    )


def kind_of(module: nn.Module) -> str:
    """Return the class name of a layer, with kernel size and grouping for convolutions."""
    kind = type(module).__name__
    size = getattr(module, "kernel_size", None)
    if isinstance(size, tuple) and isinstance(getattr(module, "groups", None), int):
        groups, channels = module.groups, module.in_channels
        grouping = "" if groups == 1 else " depthwise" if groups == channels else " grouped"
        return f"{kind} {'x'.join(map(str, size))}{grouping}"
    return kind


def _time_modules(
    model: nn.Module, example: torch.Tensor, passes: int
) -> tuple[list[str], dict[str, float], float]:
    """Return the modules in order of execution, the own seconds of each, and the total seconds."""
    order: dict[str, None] = {}
    samples: dict[str, list[float]] = defaultdict(list)
    totals: list[float] = []
    with _own_times(model, order, example.is_cuda) as spent:
        for i in range(3 + passes):
            spent.clear()
            begin = time.perf_counter()
            model(example)
            total = time.perf_counter() - begin
            if i >= 3:
                totals.append(total)
                for name in order:
                    samples[name].append(spent[name])
    own = {name: statistics.median(values) for name, values in samples.items()}
    return list(order), own, statistics.median(totals)


@contextlib.contextmanager
def _own_times(model: nn.Module, order: dict[str, None], cuda: bool) -> Iterator[Counter[str]]:
    """Yield a counter of the seconds that each module spends outside the modules it calls."""
    spent: Counter[str] = Counter()
    stack: list[str] = []
    last = [0.0]

    def tick() -> None:
        if cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if stack:
            spent[stack[-1]] += now - last[0]  # type: ignore[assignment]

    def enter(name: str) -> None:
        tick()
        stack.append(name)
        order.setdefault(name)
        last[0] = time.perf_counter()

    def leave() -> None:
        tick()
        stack.pop()
        last[0] = time.perf_counter()

    with module_callbacks(model, enter, leave):
        yield spent


def _fastest(call: Any, cuda: bool) -> float:
    """Return the seconds of the fastest of ten calls."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)
