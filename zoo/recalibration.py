"""Estimate the statistics of batch norms again, after the weights before them have changed.

A network that was cut out of a larger one, or whose weights were averaged, has the running
statistics of other weights: its accuracy is low until they are estimated again.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import BadInput, unknown_value

Model = TypeVar("Model", bound=nn.Module)

METHODS = ("cumulative", "once_for_all")


def recalibrate(model: Model, batches: Iterable[Tensor], method: str = "cumulative") -> Model:
    """Return a copy of `model` with batch norm statistics estimated from `batches`.

    While statistics are estimated, batch norms normalise with those of the batch, and everything
    else, such as dropout, is in evaluation mode.

    Args:
        model: The model; it is not changed. The copy is in the same mode.
        batches: Inputs of the model, usually images B C H W prepared as in training.
        method: `"cumulative"`: the mean of the statistics of all batches, as PyTorch computes it
            with `momentum=None` (unbiased variances, batches weigh the same). `"once_for_all"`:
            biased variances, and each batch weighs as many as it has images (arXiv 1908.09791,
            public code).

    Raises:
        BadInput: There are no batches, or the method is unknown.
    """
    if method not in METHODS:
        raise BadInput(unknown_value("method", method, METHODS))
    twin = copy.deepcopy(model)
    norms = [m for m in twin.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    count = 0
    with _statistics_of_batches(twin, norms, method), torch.no_grad():
        for batch in batches:
            twin(batch)
            count += 1
    if not count:
        raise BadInput("batches is empty: at least one batch of inputs is required")
    return twin


@contextmanager
def _statistics_of_batches(twin: nn.Module, norms: list[Any], method: str) -> Iterator[None]:
    """Collect statistics while the model runs, and write them to the norms at the end."""
    modes = [(module, module.training) for module in twin.modules()]
    momenta = [norm.momentum for norm in norms]
    twin.eval()
    handles: list[Any] = []
    means: dict[Any, _WeightedMean] = {norm: _WeightedMean() for norm in norms}
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None
        if method == "once_for_all":
            handles.append(norm.register_forward_pre_hook(means[norm].add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            means[norm].write(norm)
        for module, mode in modes:
            module.training = mode


class _WeightedMean:
    """Means and biased variances of the inputs of a batch norm, weighted by the batch size."""

    def __init__(self) -> None:
        self.weight = 0
        self.mean: Any = 0.0
        self.variance: Any = 0.0

    def add(self, norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].detach()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.weight += len(x)
        self.mean = self.mean + len(x) * x.mean(axes)
        self.variance = self.variance + len(x) * x.var(axes, correction=0)

    def write(self, norm: Any) -> None:
        if self.weight:
            norm.running_mean.copy_(self.mean / self.weight)
            norm.running_var.copy_(self.variance / self.weight)
