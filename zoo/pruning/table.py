"""The latency of each group at each width, measured in one runtime.

Each block that declares a group is run by itself, on an input of the shape that it has in the
model, at a few widths; between them the table is interpolated. Blocks of the same form and input
are measured once.
"""

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo import runtimes
from zoo.blocks.widths import groups_of, narrow
from zoo.deploy.pipeline import convert
from zoo.environment import quiet
from zoo.narrowing import Place
from zoo.profiling import latency
from zoo.profiling.results import Comparison
from zoo.progress import track
from zoo.reparam import reparameterize

SHARES = (1.0, 0.5, 0.25)  # widths that are measured
BUDGET: dict[str, Any] = {"min_runs": 30, "min_time": 0.2, "max_time": 3.0}


class Timer(Protocol):
    """Measures latencies."""

    def ms(self, model: nn.Module, input_size: Sequence[int]) -> float:
        """Return the median latency of a model in ms."""
        ...

    def compare(self, before: nn.Module, after: nn.Module, input_size: Sequence[int]) -> Comparison:
        """Compare two models, called in turn."""
        ...


class MachineTimer:
    """Measures fused models in a runtime on this machine.

    Args:
        runtime: A name of `zoo.runtimes.NAMES`.
        threads: Number of threads per call.

    Raises:
        BadInput: The runtime is unknown, or does not support the number of threads.
        MissingExtra: A package of the runtime is not installed.
    """

    def __init__(self, runtime: str, threads: int) -> None:
        runtimes.check_settings(runtime, threads=threads)
        self.runtime, self.threads = runtime, threads

    def ms(self, model: nn.Module, input_size: Sequence[int]) -> float:
        """Return the median latency of a model in ms."""
        return latency.measure(self._load(model, input_size), input_size, **BUDGET).p50_ms

    def compare(self, before: nn.Module, after: nn.Module, input_size: Sequence[int]) -> Comparison:
        """Compare two models, called in turn."""
        sides = [self._load(model, input_size) for model in (before, after)]
        return latency.compare(sides[0], sides[1], input_size, min_runs=100, min_time=1.0)

    def _load(self, model: nn.Module, input_size: Sequence[int]) -> runtimes.Runtime:
        with quiet():
            fused = reparameterize(copy.deepcopy(model).eval())
        suffix = runtimes.artefact_suffix(self.runtime)
        if suffix is None:
            return runtimes.load(fused, self.runtime, threads=self.threads)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"model{suffix}"
            convert(fused, file, input_size=tuple(input_size), dynamic_batch=False)
            return runtimes.load(file, self.runtime, fused=True, threads=self.threads)


class LatencyTable:
    """Latency of each group at each width.

    Args:
        points: Group -> measured widths, in ascending order, and their latencies in ms.
    """

    def __init__(self, points: Mapping[str, tuple[list[int], list[float]]]) -> None:
        self.points = points

    def ms(self, name: str, width: int) -> float:
        """Return the latency of a group's block in ms, interpolated between measured widths."""
        widths, times = self.points[name]
        if width < widths[0] and len(widths) > 1:  # the line through the two narrowest
            slope = (times[1] - times[0]) / (widths[1] - widths[0])
            return max(0.0, times[0] - slope * (widths[0] - width))
        return float(np.interp(width, widths, times))


def measure_table(
    model: nn.Module, found: Mapping[str, Place], input_size: Sequence[int], timer: Timer
) -> LatencyTable:
    """Measure the blocks of a model at a few widths.

    Args:
        model: In evaluation mode; it is not changed.
        found: Its groups.
        input_size: B C H W.
        timer: Measures latencies.
    """
    blocks = {place.path: place.block for place in found.values()}
    with _recorded(blocks) as calls, torch.no_grad():
        model(torch.zeros(tuple(input_size)))
    known: dict[Any, float] = {}
    points: dict[str, tuple[list[int], list[float]]] = {}
    for name in track(list(found), "measuring blocks"):
        place = found[name]
        if place.path not in calls:  # not run by itself: its time is not known
            points[name] = ([place.group.width], [0.0])
            continue
        widths = sorted({_at_share(place.group.widths(), share) for share in SHARES})
        times = []
        for width in widths:
            arguments = calls[place.path]
            form = (repr(place.block), _form(arguments), place.group.name, width)
            if form not in known:
                narrower = copy.deepcopy(place.block)
                (group,) = (g for g in groups_of(narrower) if g.name == place.group.name)
                if width < group.width:
                    narrow(narrower, group, torch.arange(width))
                alone = _Alone(narrower, arguments)
                known[form] = timer.ms(alone, alone.input_size)
            times.append(known[form])
        points[name] = (widths, times)
    return LatencyTable(points)


def _at_share(widths: Sequence[int], share: float) -> int:
    return min(width for width in widths if width >= share * widths[0])


def _form(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(a.shape if isinstance(a, Tensor) else a for a in arguments)


class _Alone(nn.Module):
    """A block that takes all its tensors from one, whose numbers are put into their shapes.

    Args:
        block: The block.
        arguments: Arguments that it was called with.
    """

    def __init__(self, block: nn.Module, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.block, self.arguments = block, _form(arguments)
        sizes = [a.numel() for a in self.arguments if isinstance(a, torch.Size)]
        self.sizes, self.input_size = sizes, (1, 1, 1, sum(sizes))

    def forward(self, x: Tensor) -> Any:
        parts = iter(x.flatten().split(self.sizes))
        given = [next(parts).view(a) if isinstance(a, torch.Size) else a for a in self.arguments]
        return self.block(*given)


@contextlib.contextmanager
def _recorded(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Record the arguments of the first call of each block."""
    calls: dict[str, tuple[Any, ...]] = {}
    names = {block: path for path, block in blocks.items()}

    def record(block: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls.setdefault(names[block], arguments)

    handles = [block.register_forward_pre_hook(record) for block in blocks.values()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
