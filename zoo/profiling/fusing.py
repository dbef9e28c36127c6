"""Compare a model before and after re-parameterisation: layers, cost, latency, numerical error."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.counting.count import count
from zoo.display import Displayed
from zoo.errors import BadInput
from zoo.profiling.latency import compare
from zoo.profiling.results import Comparison
from zoo.reparam import randomize_parameters, reparameterize


@dataclass(frozen=True, repr=False)
class FuseReport(Displayed):
    """The effect of fusing: each pair is (unfused, fused), each cost is for one image.

    Attributes:
        layers: Number of modules without children, except `nn.Identity`.
        params: Number of parameters.
        macs: Multiply-accumulates.
        flops: FLOPs.
        activations: Number of elements in the outputs of the operators that have MACs.
        nodes: Number of operators executed, not counting views.
        error: Largest difference of the outputs in float64, divided by the mean difference between
            the outputs of two images.
        latency: Comparison of the latencies in PyTorch, or None if it was not requested.
    """

    layers: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]
    flops: tuple[int, int]
    activations: tuple[int, int]
    nodes: tuple[int, int]
    error: float
    latency: Comparison | None = None

    def __repr__(self) -> str:
        lines = [f"{name} {before} -> {after}" for name, (before, after) in self._pairs()]
        return f"FuseReport({', '.join(lines)}, error {self.error:.1e})"

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures before and after, for display."""
        rows = [(name, f"{before:,} -> {after:,}") for name, (before, after) in self._pairs()]
        rows += [("latency", str(self.latency))] if self.latency is not None else []
        return [*rows, ("largest relative error", f"{self.error:.1e}")]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can encode."""
        latency = None if self.latency is None else self.latency.to_dict()
        pairs = {key: list(value) for key, value in vars(self).items() if isinstance(value, tuple)}
        return {**pairs, "error": self.error, "latency": latency}

    def _pairs(self) -> list[tuple[str, tuple[int, int]]]:
        return [
            ("layers", self.layers),
            ("params", self.params),
            ("MACs", self.macs),
            ("FLOPs", self.flops),
            ("activations", self.activations),
            ("nodes", self.nodes),
        ]

    def __str__(self) -> str:
        rows = [f"{name:<12}{before:>16,}{after:>16,}" for name, (before, after) in self._pairs()]
        if self.latency is not None:
            times = self.latency.a.p50, self.latency.b.p50
            rows.append(f"{'latency, ms':<12}{times[0]:>16.3f}{times[1]:>16.3f}")
            verdict = {"B is faster": "faster", "B is slower": "slower"}
            low, high = self.latency.low, self.latency.high
            interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
            rows.append(
                f"fused / unfused latency: {self.latency.ratio:.3f}{interval}, "
                f"{verdict.get(self.latency.verdict, 'no difference')}"
            )
        head = f"{'':<12}{'unfused':>16}{'fused':>16}"
        return "\n".join(
            [head, *rows, f"largest relative error with random weights: {self.error:.1e}"]
        )


def report(
    before: nn.Module,
    after: nn.Module,
    input_size: tuple[int, ...] = (2, 3, 224, 224),
    *,
    timed: bool = True,
) -> FuseReport:
    """Compare a model with the result of `reparameterize`.

    Args:
        before: The unfused model, in evaluation mode.
        after: The fused model.
        input_size: B C H W of the images to compare the outputs on; B is at least 2.
        timed: Whether to compare latencies as well, which takes some seconds.

    Raises:
        BadInput: The outputs do not depend on the image, so comparing them proves nothing.
    """
    randomized = randomize_parameters(copy.deepcopy(before).double().cpu())
    images = torch.randn(input_size, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected, fused = randomized(images), reparameterize(randomized)(images)
    spread = (expected[0] - expected[1]).abs().mean().item()
    if not spread > 1e-6 * expected.abs().max().item():
        raise BadInput(
            f"the outputs of {type(before).__name__} do not depend on the image, so comparing them "
            "proves nothing"
        )
    one_image = (1, *input_size[1:])
    counts = count(before, one_image), count(after, one_image)
    return FuseReport(
        layers=(_num_layers(before), _num_layers(after)),
        params=(counts[0].params, counts[1].params),
        macs=(counts[0].macs, counts[1].macs),
        flops=(counts[0].flops, counts[1].flops),
        activations=(counts[0].activations, counts[1].activations),
        nodes=(counts[0].operators, counts[1].operators),
        error=(fused - expected).abs().max().item() / spread,
        latency=compare(before, after, one_image) if timed else None,
    )


def _num_layers(model: nn.Module) -> int:
    """Count the modules that have no children, except `nn.Identity`."""
    return sum(not list(m.children()) and not isinstance(m, nn.Identity) for m in model.modules())
