"""Where the time of a model goes: each layer's time beside its MACs and bytes, and what bounds it.

Two ceilings of the machine are measured in the same run: multiply-accumulates a second of a large
matrix product, and bytes a second of a large copy. A layer that its bytes would take longer than
its MACs is bound by memory (the roofline model: Williams et al., 2009); one that takes far longer
than either is bound by overhead: too small a piece of work for what starting it costs.
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
from zoo.counting.hooks import around_modules
from zoo.counting.traffic import observe
from zoo.profiling.latency import random_batch

OVERHEAD = 10.0  # times what MACs and bytes would take: it is neither that bounds the layer
_SIDE = 1024  # of the matrices
_COPIED = 1 << 26  # bytes, more than caches hold


@dataclass(frozen=True)
class Roofline:
    """What a machine can do at most, as measured.

    Attributes:
        gmacs_per_s: Multiply-accumulates of a matrix product of 1024 x 1024, in 10^9 a second.
        gbytes_per_s: Bytes read and written by a copy of 64 MiB, in 10^9 a second.
    """

    gmacs_per_s: float
    gbytes_per_s: float


@dataclass(frozen=True)
class Layer:
    """What a module does itself, without the modules inside it.

    Attributes:
        name: Its dotted name; `""` is the model.
        type: Its class, for convolutions with kernel and grouping.
        ms: Time of its own, the median over the passes.
        macs: Multiply-accumulates.
        params: Parameters that belong to it directly.
        bytes: Read and written by its operators.
        gmacs_per_s: Rate of the first.
        gbytes_per_s: Rate of the second.
        bound: `"compute"`, `"memory"` or `"overhead"`.
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


@dataclass(frozen=True)
class Layers:
    """The layers of a model in the order of execution, with the machine's ceilings.

    Attributes:
        layers: Those that execute operators of their own.
        roofline: What the machine can do.
        total_ms: Time of the model in the same passes, timing included.
    """

    layers: list[Layer]
    roofline: Roofline
    total_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def by_type(self) -> dict[str, dict[str, float]]:
        """Return ms, macs, bytes and number of the layers of each type, the slowest first."""
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
    """Time every layer of a model in PyTorch, with its MACs and bytes.

    The model stays as it was.

    Args:
        model: Any module that takes one tensor.
        input_size: B C H W of the input, which is random.
        threads: Threads that share a call; None: as many as PyTorch uses.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None: the model's own.
        channels_last: Whether images and weights lie as NHWC in memory.
        passes: Forward passes that the medians are taken over, after three more.

    Raises:
        BadInput: A value that cannot work, or an input size that the model does not take.
        UncountedOperator: The model executes an operator that has no rule.
    """
    batch = random_batch(input_size)
    counts = count(model, tuple(batch.shape))
    macs = {name: row["macs"] for name, row in counts.by_module().items()}
    settings = {"threads": threads, "dtype": dtype, "channels_last": channels_last}
    loaded: Any = runtimes.load(model, "eager", **settings)
    example = loaded.bind(batch).args[0] if not loaded.device.startswith("cuda") else None
    if example is None:
        example = torch.from_numpy(batch).to(next(loaded.model.parameters()))
    with loaded.process_settings():
        moved = observe(loaded.model, example).by_module
        order, own, total = _timed(loaded.model, example, passes)
        roofline = measure_roofline(example)
    modules = dict(loaded.model.named_modules())
    layers = []
    for name in order:
        mine = macs[name] - sum(macs[child] for child in _children(modules, name))
        if mine or moved.get(name):
            module = modules[name]
            layers.append(_layer(name, module, own[name], mine, moved.get(name, 0), roofline))
    return Layers(layers, roofline, total * 1e3)


def measure_roofline(like: torch.Tensor) -> Roofline:
    """Measure what this machine can do in the type and on the device of `like`."""
    a = torch.rand(_SIDE, _SIDE).to(like)
    product = torch.empty_like(a)
    source = torch.zeros(_COPIED // like.element_size()).to(like)
    target = torch.empty_like(source)
    gemm = _best(lambda: torch.mm(a, a, out=product), like.is_cuda)
    copy = _best(lambda: target.copy_(source), like.is_cuda)
    return Roofline(_SIDE**3 / gemm / 1e9, 2 * _COPIED / copy / 1e9)


def comparison(profiles: dict[str, Layers]) -> Table:
    """Return one table by type of layer, a group of columns a model.

    It answers why a model of fewer MACs can be the slower one: by what its time is spent on, and
    how fast that goes.
    """
    table = Table(title="where the time goes, by type of layer")
    table.add_column("layers")
    for name in profiles:
        for unit in ("ms", "GMACs", "GMACs/s", "GB/s"):
            table.add_column(f"{name}\n{unit}", justify="right")
    kinds = {name: profile.by_type() for name, profile in profiles.items()}
    every = dict.fromkeys(kind for table_of in kinds.values() for kind in table_of)
    for kind in sorted(
        every, key=lambda k: -max(t.get(k, {}).get("ms", 0) for t in kinds.values())
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
    """Name the type of a layer; convolutions with kernel and grouping, which decide their speed."""
    kind = type(module).__name__
    size = getattr(module, "kernel_size", None)
    if isinstance(size, tuple) and isinstance(getattr(module, "groups", None), int):
        groups, channels = module.groups, module.in_channels
        sort = "" if groups == 1 else " depthwise" if groups == channels else " grouped"
        return f"{kind} {'x'.join(map(str, size))}{sort}"
    return kind


def _children(modules: dict[str, nn.Module], name: str) -> list[str]:
    prefix = f"{name}." if name else ""
    direct = (prefix + child for child, _ in modules[name].named_children())
    return [child for child in direct if child in modules]


def _timed(
    model: nn.Module, example: torch.Tensor, passes: int
) -> tuple[list[str], dict[str, float], float]:
    """Return names in order of execution, seconds of each without its children, and of all."""
    order: dict[str, None] = {}
    samples: dict[str, list[float]] = defaultdict(list)
    totals: list[float] = []
    with _clocked(model, order, example.is_cuda) as spent:
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
def _clocked(model: nn.Module, order: dict[str, None], cuda: bool) -> Iterator[Counter[str]]:
    """Add up the time that each module spends outside the modules it calls."""
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

    with around_modules(model, enter, leave):
        yield spent


def _best(call: Any, cuda: bool) -> float:
    """Return the least seconds of ten calls."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)
