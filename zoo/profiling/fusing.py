"""What re-parameterising a model changes: layers, cost, latency, and its numerical error."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.counting.count import count
from zoo.errors import BadInput
from zoo.profiling.latency import compare
from zoo.reparam import reparameterize, shake


@dataclass(frozen=True)
class FuseReport:
    """What fusing changed: figures before and after, and the largest error.

    Attributes:
        layers: Modules without children.
        params: Parameters.
        macs: Multiply-accumulates of one image.
        flops: FLOPs of one image.
        activations: Elements that the operators with MACs write, of one image.
        nodes: Operators executed, views left out.
        error: Largest difference of the outputs in float64, relative to their spread.
        latency: How long the fused model takes beside the other, called in turn in PyTorch on one
            image; None where it was not asked for.
    """

    layers: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]
    flops: tuple[int, int]
    activations: tuple[int, int]
    nodes: tuple[int, int]
    error: float
    latency: Any = None

    def __str__(self) -> str:
        rows = [
            f"{name:<12}{before:>16,}{after:>16,}"
            for name, (before, after) in (
                ("layers", self.layers),
                ("params", self.params),
                ("MACs", self.macs),
                ("FLOPs", self.flops),
                ("activations", self.activations),
                ("nodes", self.nodes),
            )
        ]
        if self.latency is not None:
            times = self.latency.a.p50 * 1e3, self.latency.b.p50 * 1e3
            rows.append(f"{'latency, ms':<12}{times[0]:>16.3f}{times[1]:>16.3f}")
            verdict = {"B is faster": "faster", "B is slower": "slower"}
            low, high = self.latency.low, self.latency.high
            interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
            rows.append(
                f"fused: {verdict.get(self.latency.verdict, 'no difference')}, "
                f"{self.latency.ratio:.3f}{interval} of the time"
            )
        head = f"{'':<12}{'unfused':>16}{'fused':>16}"
        return "\n".join(
            [head, *rows, f"largest relative error on random weights {self.error:.1e}"]
        )


def report(
    before: nn.Module,
    after: nn.Module,
    input_size: tuple[int, ...] = (2, 3, 224, 224),
    *,
    timed: bool = True,
) -> FuseReport:
    """Compare a model with its fused form.

    Args:
        before: The model as it was, in evaluation mode.
        after: What `reparameterize` made of it.
        input_size: Shape of the images to compare on, at least two of them.
        timed: Whether to compare latencies, too, which takes some seconds.

    Raises:
        BadInput: The outputs do not depend on the image, so that comparing them shows nothing.
    """
    randomized = shake(copy.deepcopy(before).double().cpu())
    images = torch.randn(input_size, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        want, have = randomized(images), reparameterize(randomized)(images)
    spread = (want[0] - want[1]).abs().mean().item()
    if not spread > 1e-6 * want.abs().max().item():
        raise BadInput(f"the outputs of {type(before).__name__} do not depend on the image")
    one = (1, *input_size[1:])
    counts = count(before, one), count(after, one)
    latency = None
    if timed:
        latency = compare(before, after, one)
    return FuseReport(
        layers=(_leaves(before), _leaves(after)),
        params=(counts[0].params, counts[1].params),
        macs=(counts[0].macs, counts[1].macs),
        flops=(counts[0].flops, counts[1].flops),
        activations=(counts[0].activations, counts[1].activations),
        nodes=(counts[0].operators, counts[1].operators),
        error=(want - have).abs().max().item() / spread,
        latency=latency,
    )


def _leaves(model: nn.Module) -> int:
    """The number of layers: modules without children that do something."""
    return sum(not list(m.children()) and not isinstance(m, nn.Identity) for m in model.modules())
