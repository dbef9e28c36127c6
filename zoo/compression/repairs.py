"""Repairs that a model gets before int8: equal channels, adaptive rounding, corrected biases.

- `equalize` scales the channels between two layers, which does not change the float model, so that
  the weights of both have equal ranges in each channel (Nagel et al., Data-Free Quantization,
  arXiv 1906.04721, section 4.1). It applies where a layer, or one and a ReLU or LeakyReLU, is read
  by exactly one other layer.
- `rounding` rounds each weight up or down such that the outputs of its layer change least, instead
  of to the nearest step (Nagel et al., Up or Down?, arXiv 2004.10568). Instead of gradient descent,
  weights are moved one at a time as long as that helps.
- `biases` adds to each bias what rounding the weights changes the mean of its channel by
  (arXiv 1906.04721, section 4.2).
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoo.compression.layers import channel_axis, layers, rows_of, within
from zoo.compression.recipe import Limits, Quantizer, Recipe
from zoo.compression.saturation import PAIR_LIMIT
from zoo.progress import phase

ROUNDS = 20  # passes of `equalize` over all pairs; a chain needs several
POSITIONS = 256  # of each image that `rounding` looks at
LARGEST = 2400  # inputs of an output channel; for more, `rounding` keeps the nearest step
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity)  # f(c x) = c f(x) for c > 0
HOMOGENEOUS_CALLS = {torch.relu, F.relu, F.relu_, F.leaky_relu, "relu", "relu_"}


def repair(
    model: nn.Module, recipe: Recipe, quantizer: Quantizer, batches: Sequence[np.ndarray]
) -> tuple[nn.Module, Limits | None, dict[str, int]]:
    """Return a repaired copy of a model.

    Args:
        model: The model, fused and in evaluation mode; it is not changed.
        recipe: Names the repairs, and the layers that stay in float.
        quantizer: Knows the grid that weights are rounded to.
        batches: Images to calibrate on.

    Returns:
        The copy; the limits of the grid of each layer, or None if the quantiser may choose them;
        and the number of pairs or layers that each repair changed.
    """
    if not recipe.repairs:
        return model, None, {}
    model = copy.deepcopy(model)
    changed = {}
    if "equalize" in recipe.repairs:
        changed["equalize"] = equalize(model)
    chosen = {k: v for k, v in layers(model).items() if not within(k, recipe.keep_float)}
    limits = None
    if "rounding" in recipe.repairs or "biases" in recipe.repairs:
        original = copy.deepcopy(model)
        grids = {name: quantizer.grid(layer, rows_of(layer)) for name, layer in chosen.items()}
        if "rounding" in recipe.repairs:
            with phase("rounding weights"):
                changed["rounding"] = round_weights(
                    model, grids, batches, centred="biases" in recipe.repairs
                )
        limits = {name: grid[0] for name, grid in grids.items()}
        if "biases" in recipe.repairs:
            with phase("correcting biases"):
                rounded = {n: nearest(rows_of(chosen[n]), grids[n]) for n in grids}
                changed["biases"] = correct_biases(model, original, rounded, batches)
    return model, limits, changed


def nearest(weight: np.ndarray, grid: tuple[np.ndarray, int]) -> np.ndarray:
    """Return weights, output channels first, rounded to the nearest step of a grid."""
    scale = _scale(grid, weight.ndim)
    return np.clip(np.round(weight / scale), -grid[1], grid[1]) * scale


def _scale(grid: tuple[np.ndarray, int], ndim: int) -> np.ndarray:
    limits, steps = grid
    return np.asarray(limits, np.float64).reshape(-1, *[1] * (ndim - 1)) / steps


def equalize(model: nn.Module) -> int:
    """Give both weights of each pair of layers the same range in each channel, in place.

    Returns:
        The number of pairs; none if the model cannot be traced.
    """
    pairs = _pairs(model)
    with torch.no_grad():
        for _ in range(ROUNDS if pairs else 0):
            for first, second in pairs:
                a, b = _channels(first.weight, 1), _inputs(second)
                ranges = a.abs().amax(dim=1), b.abs().amax(dim=1)
                factor = torch.sqrt(ranges[1] / ranges[0])
                usable = (ranges[0] > 0) & (ranges[1] > 0)
                factor = torch.where(usable, factor, torch.ones_like(factor))
                first.weight.mul_(factor.view(-1, *[1] * (first.weight.ndim - 1)))
                if first.bias is not None:
                    first.bias.mul_(factor)
                _scale_inputs(second, 1 / factor)
    return len(pairs)


def _channels(weight: Tensor, start: int) -> Tensor:
    return weight.flatten(start)


def _inputs(layer: Any) -> Tensor:
    """Return the weights that read each input channel: channels, weights."""
    groups = getattr(layer, "groups", 1)
    parts = layer.weight.unflatten(0, (groups, -1))  # groups, outputs, inputs of a group, ...
    return parts.movedim(2, 1).flatten(0, 1).flatten(1)


def _scale_inputs(layer: Any, factor: Tensor) -> None:
    groups = getattr(layer, "groups", 1)
    parts = layer.weight.unflatten(0, (groups, -1))
    shape = (groups, 1, parts.shape[2], *[1] * (parts.ndim - 3))
    layer.weight.copy_((parts * factor.view(shape)).flatten(0, 1))


def _pairs(model: nn.Module) -> list[tuple[Any, Any]]:
    """Return the layers whose output one other layer reads, each with that layer."""
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # tracing raises errors of every class
        return []
    modules = dict(model.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    direct = {node.target for node in graph.nodes if node.op == "get_attr"}
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

    def is_layer(node: fx.Node) -> bool:
        name = str(node.target)
        return (
            node.op == "call_module"
            and type(modules[name]) in kinds
            and calls.count(node.target) == 1
            and f"{name}.weight" not in direct
        )

    found = []
    for node in graph.nodes:
        if not is_layer(node):
            continue
        reader = _only_reader(node)
        while reader is not None and _is_homogeneous(reader, modules):
            reader = _only_reader(reader)
        if reader is None or not is_layer(reader):
            continue
        pair = modules[str(node.target)], modules[str(reader.target)]
        if isinstance(pair[0], nn.Linear) == isinstance(pair[1], nn.Linear):
            found.append(pair)
    return found


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_homogeneous(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], HOMOGENEOUS)
    return node.op in ("call_function", "call_method") and node.target in HOMOGENEOUS_CALLS


def correct_biases(
    model: nn.Module,
    original: nn.Module,
    rounded: dict[str, np.ndarray],
    batches: Sequence[np.ndarray],
) -> int:
    """Correct the mean error that rounded weights cause in each output channel, in place.

    Args:
        model: The model whose biases are corrected.
        original: The same model with the weights that rounding started from.
        rounded: The rounded weight of each layer, output channels first.
        batches: Images to compute means over.

    Returns:
        The number of layers with a bias that the model calls.
    """
    probes, sums, counts = {}, {}, {}
    for name, weight in rounded.items():
        layer: Any = original.get_submodule(name)
        if layer.bias is None:
            continue
        probe: Any = copy.deepcopy(layer)
        change = np.moveaxis(weight - rows_of(layer), 0, channel_axis(layer))
        with torch.no_grad():
            probe.weight.copy_(torch.from_numpy(np.ascontiguousarray(change)))
            probe.bias.zero_()
        probes[name] = probe

    def note(name: str, x: Tensor) -> None:
        error = probes[name](x)
        is_linear = isinstance(probes[name], nn.Linear)
        axis = -1 if is_linear else error.ndim - probes[name].weight.ndim + 1
        error = error.movedim(axis, 0).flatten(1)
        sums[name] = sums.get(name, 0) + error.sum(dim=1, dtype=torch.float64)
        counts[name] = counts.get(name, 0) + error.shape[1]

    with _observed(original, probes, note):
        _run(original, batches)
    with torch.no_grad():
        for name, total in sums.items():
            layer = model.get_submodule(name)
            layer.bias.sub_((total / counts[name]).to(layer.bias.dtype))
    return len(sums)


def round_weights(
    model: nn.Module,
    grids: dict[str, tuple[np.ndarray, int]],
    batches: Sequence[np.ndarray],
    *,
    centred: bool = False,
) -> int:
    """Round the weights of a model to the steps that change the outputs of each layer least.

    Args:
        model: The model; its weights are replaced.
        grids: The grid of each layer, see `Quantizer.grid`.
        batches: Images to compute the moments of inputs over.
        centred: Whether mean errors do not count, because biases correct them.

    Returns:
        The number of layers. Transposed and very wide ones keep the nearest steps.
    """
    moments: dict[str, _Moments] = {}
    chosen = {
        name: layer
        for name in grids
        if isinstance(layer := model.get_submodule(name), nn.Linear | nn.Conv2d)
        and getattr(layer, "padding_mode", "zeros") == "zeros"
        and layer.weight[0].numel() <= LARGEST
    }

    def note(name: str, x: Tensor) -> None:
        patches = _patches(chosen[name], x)
        moments.setdefault(name, _Moments()).add(patches)

    with _observed(model, chosen, note):
        _run(model, batches)
    with torch.no_grad():
        for name, grid in grids.items():
            layer: Any = model.get_submodule(name)
            rows = rows_of(layer)
            if name in moments:
                flat = rows.reshape(len(rows), -1)
                adapted = round_rows(flat, grid, moments[name].matrix(centred))
                rounded = adapted.reshape(rows.shape)
            else:
                rounded = nearest(rows, grid)
            rounded = np.moveaxis(rounded, 0, channel_axis(layer))
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))
    return len(moments)


def round_rows(rows: np.ndarray, grid: tuple[np.ndarray, int], moments: np.ndarray) -> np.ndarray:
    """Return weights rounded up or down with the least error `e H e` that single moves reach.

    It starts at the nearest steps, so the error is never larger than theirs. A weight does not
    move beyond the second largest of its sign in its channel, so that any two still add up to what
    `saturation` allows.

    Args:
        rows: The weights: output channels, inputs.
        grid: The grid, see `Quantizer.grid`.
        moments: H, the second moments of the inputs, for each group: groups, inputs, inputs.
    """
    scale = _scale(grid, 2)
    exact = rows / scale
    steps = np.clip(np.round(exact), -grid[1], grid[1])
    other = np.where(steps > exact, steps - 1, steps + 1)  # the step on the other side
    bound = _bounds(steps)
    grows = np.abs(other) > np.abs(steps)
    allowed = (np.abs(other) <= np.where(grows, bound, grid[1])) & (steps != exact)
    group = np.repeat(np.arange(len(moments)), len(rows) // len(moments))  # of each channel
    error = (steps - exact) * scale
    pull = (error.reshape(len(moments), -1, error.shape[1]) @ moments).reshape(error.shape)
    diagonal = np.diagonal(moments, axis1=1, axis2=2)[group]
    channels = np.arange(len(rows))
    for _ in range(2 * rows.shape[1]):
        move = (other - steps) * scale
        gain = np.where(allowed, 2 * move * pull + np.square(move) * diagonal, 0.0)
        best = gain.argmin(axis=1)
        helps = gain[channels, best] < -1e-12 * np.abs(error * pull).sum(axis=1) - 1e-300
        if not helps.any():
            break
        some, inputs = channels[helps], best[helps]
        shift = move[some, inputs]
        pull[some] += shift[:, None] * moments[group[some], inputs]
        error[some, inputs] += shift
        swap = steps[some, inputs].copy()
        steps[some, inputs], other[some, inputs] = other[some, inputs], swap
    return steps * scale


def _bounds(steps: np.ndarray) -> np.ndarray:
    """Return how large a weight may become for its sign: the second largest of its channel."""
    if steps.shape[1] < 3:
        return np.zeros_like(steps)
    positive = np.sort(np.maximum(steps, 0), axis=1)[:, -2:-1]
    negative = np.sort(np.maximum(-steps, 0), axis=1)[:, -2:-1]
    bound = np.where(steps >= 0, positive, negative)
    return np.minimum(bound, PAIR_LIMIT)


class _Moments:
    """Means and second moments of the inputs of a layer, per group."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, patches: Tensor) -> None:
        """Add inputs: positions, groups, inputs."""
        x = patches.double().movedim(1, 0)
        self.count += x.shape[1]
        self.sums = self.sums + x.sum(dim=1)
        self.squares = self.squares + x.mT @ x

    def matrix(self, centred: bool) -> np.ndarray:
        """Return the second moments, or the covariance: groups, inputs, inputs."""
        mean, squares = self.sums / self.count, self.squares / self.count
        if centred:
            squares = squares - mean[:, :, None] * mean[:, None, :]
        return squares.numpy()


def _patches(layer: Any, x: Tensor) -> Tensor:
    """Return the inputs that outputs read, at some positions: positions, groups, inputs."""
    if isinstance(layer, nn.Linear):
        x = x.reshape(-1, 1, x.shape[-1])
        return x[:: max(1, len(x) // (POSITIONS * 32))]
    padding: Any = layer.padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0
                 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # fmt: skip
        x = F.pad(x, [n for t in reversed(total) for n in (t // 2, t - t // 2)])
        padding = 0
    x = F.unfold(
        x, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
    )  # N, channels x kernel, positions
    x = x[:, :, :: max(1, x.shape[-1] // POSITIONS)]
    return x.mT.reshape(-1, layer.groups, x.shape[1] // layer.groups)


@contextmanager
def _observed(model: nn.Module, names: Any, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `note` with the name and the input of each layer within the context."""

    def hook(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        note(name, inputs[0].detach())

    handles = [
        model.get_submodule(name).register_forward_pre_hook(functools.partial(hook, name))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, batches: Sequence[np.ndarray]) -> None:
    parameter = next(model.parameters())
    with torch.no_grad():
        for batch in batches:
            x = torch.from_numpy(batch)
            model(x.to(parameter.dtype) if x.is_floating_point() else x)
