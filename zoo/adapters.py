"""Adapters that merge: few trained numbers beside a frozen model, and none after training.

    norms   the weights and biases of the norms themselves
    ssf     a scale and a shift for every channel behind linear layers, convolutions and norms:
            gamma ~ N(1, std), beta ~ N(0, std). A layer that a batch norm follows gets none, as
            the norm behind it does. (SSF, arXiv 2210.08823)
    lora    W + alpha / rank * B A, B zero at the start; for a convolution, A has its kernel
            (LoRA, arXiv 2106.09685)
    linear  a bottleneck without activation behind the layer: (1 + alpha / rank * U D) (W x + b),
            U zero at the start (as in ZeroI2V, arXiv 2310.01324)

`lora` and `linear` adapt linear layers and convolutions of one group. An adapter is a
parametrization of PyTorch: the layer stays what it is, and its weight is computed from the frozen
one and the adapter. Therefore code that reads `layer.weight` sees the adapted weight, and merging
changes nothing but rounding.
"""

import copy
import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.blocks.folding import without_parametrizations
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, unknown_value
from zoo.keys import State
from zoo.merging import MARK, adapted
from zoo.weights import classifier_names

Model = TypeVar("Model", bound=nn.Module)

KINDS = ("norms", "ssf", "lora", "linear")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS = (
    *_BATCH_NORMS,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRAINED = "is_trained_adapter"  # attribute of norms that are trained as adapters


class Adapter(nn.Module):
    """The trained numbers of one layer; as a parametrization it computes the layer's weight.

    Args:
        layer: The layer, whose weight is `out x ...`.
        kind: `"ssf"`, `"lora"` or `"linear"`.
        rank: Rank of `lora` and `linear`.
        scale: Factor of the product of `lora` and `linear`.
        std: Standard deviation of the initial values of `ssf`.
    """

    def __init__(self, layer: Any, kind: str, *, rank: int, scale: float, std: float):
        super().__init__()
        self.kind, self.scale = kind, scale
        weight = layer.weight
        out = len(weight)
        if kind == "ssf":
            self.gamma = nn.Parameter(1 + std * torch.randn(out).to(weight))
            if getattr(layer, "bias", None) is not None:
                self.beta = nn.Parameter(std * torch.randn(out).to(weight))
        else:
            shape = weight.shape[1:] if kind == "lora" else (out,)
            bound = math.prod(shape) ** -0.5
            down = torch.empty(rank, *shape).uniform_(-bound, bound)
            self.down = nn.Parameter(down.to(weight))
            self.up = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return adapted(weight, dict(self._parameters), self.kind, self.scale, is_bias=False)  # type: ignore[arg-type]


class _OfBias(nn.Module):
    """The parametrization of a bias, by the adapter that its weight has."""

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.__dict__["adapter"] = adapter  # its parameters belong to the weight

    def forward(self, bias: Tensor) -> Tensor:
        adapter: Adapter = self.__dict__["adapter"]
        tensors: Any = dict(adapter._parameters)
        return adapted(bias, tensors, adapter.kind, adapter.scale, is_bias=True)


def adapt(
    model: nn.Module,
    kind: str,
    *,
    rank: int = 4,
    alpha: float | None = None,
    where: Sequence[str] = ("*",),
    std: float = 0.02,
) -> list[str]:
    """Freeze a model but for its classifier, and add adapters, in place.

    Args:
        model: Any model; its classifiers are trained as a whole.
        kind: `"norms"`, `"ssf"`, `"lora"` or `"linear"`.
        rank: Rank of `lora` and `linear`.
        alpha: The product of `lora` and `linear` is multiplied by `alpha / rank`; None: by 1.
        where: Globs of the names of layers, such as `stages.2.*`.
        std: Standard deviation of the initial values of `ssf`.

    Returns:
        The names of the adapted layers.

    Raises:
        BadInput: A value is invalid, a glob matches no such layer, or the model has none.
    """
    if kind not in KINDS:
        raise BadInput(unknown_value("kind of adapter", kind, KINDS))
    check_arguments(rank=rank, alpha=alpha, where=where, std=std)
    if adapters_of(model):
        raise BadInput("the model has adapters already; merge them first (zoo.adapters.merge)")
    places = _places(model, kind)
    if not places:
        wanted = {"norms": "norms", "ssf": "linear layers, convolutions or norms"}
        layers = wanted.get(kind, "linear layers or convolutions of one group")
        raise BadInput(
            f"{type(model).__name__} has no {layers} for adapters of the kind {kind};"
            f" choose another of {', '.join(KINDS)}"
        )
    chosen = _chosen(places, where)
    if kind in ("lora", "linear"):
        _check_rank(chosen, kind, rank)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in classifier_names(model):
        model.get_submodule(name).requires_grad_(True)
    scale = 1.0 if alpha is None else alpha / rank
    for layer in chosen.values():
        if kind == "norms":
            layer.__dict__[_TRAINED] = True
            layer.requires_grad_(True)
            continue
        adapter = Adapter(layer, kind, rank=rank, scale=scale, std=std)
        parametrize.register_parametrization(layer, "weight", adapter)
        if kind != "lora" and getattr(layer, "bias", None) is not None:
            parametrize.register_parametrization(layer, "bias", _OfBias(adapter))
        layer.train(layer.training)
    return list(chosen)


def check_arguments(
    *, rank: Any = 4, alpha: Any = None, where: Any = ("*",), std: Any = 0.02, **unknown: Any
) -> None:
    """Raise `BadInput` for arguments of `adapt` that are invalid or unknown."""
    if unknown:
        known = ("rank", "alpha", "where", "std")
        raise BadInput(unknown_value("argument", next(iter(unknown)), known, where=" of adapters"))
    whole_number(rank, "rank", 1)
    for name, value, least in (("alpha", alpha, None), ("std", std, 0)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_valid = is_number and math.isfinite(value) and (value >= 0 if least == 0 else value > 0)
        if not (is_valid or (value is None and name == "alpha")):
            least_text = "at least 0" if least == 0 else "greater than 0"
            raise BadInput(f"{name}={value} must be a number {least_text}")
    is_list = isinstance(where, Iterable) and not isinstance(where, str)
    if not is_list or not list(where) or not all(isinstance(glob, str) for glob in where):
        raise BadInput(
            f"where={where} must be a list of globs of layer names, such as ['blocks.*']"
        )


def _places(model: nn.Module, kind: str) -> dict[str, Any]:
    """Return the layers that adapters of a kind can adapt, by name."""
    heads = classifier_names(model)
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    before_norm = _before_batch_norms(model) if kind == "ssf" else set()
    found = {}
    for name, module in model.named_modules():
        layer: Any = module
        is_norm = isinstance(layer, NORMS)
        kinds = {"norms": is_norm, "ssf": is_norm or isinstance(layer, _LAYERS)}
        if not kinds.get(kind, isinstance(layer, _LAYERS)):
            continue
        weight = layer._parameters.get("weight")
        if weight is None or not weight.is_floating_point() or owners[id(weight)] > 1:
            continue
        if any(name == head or name.startswith(f"{head}.") for head in heads):
            continue
        if kind in ("lora", "linear") and getattr(layer, "groups", 1) > 1:
            continue
        if id(layer) not in before_norm:
            found[name] = layer
    return found


def _before_batch_norms(model: nn.Module) -> set[int]:
    """Return the ids of layers that a module holds right before a batch norm of their channels."""
    found = set()
    for module in model.modules():
        children = list(module.children())
        for layer, norm in zip(children, children[1:], strict=False):
            if isinstance(layer, _LAYERS) and isinstance(norm, _BATCH_NORMS):
                weight: Any = layer.weight
                if norm.affine and norm.num_features == len(weight):
                    found.add(id(layer))
    return found


def _chosen(places: dict[str, Any], where: Sequence[str]) -> dict[str, Any]:
    """Return the places whose names, or those of a module around them, match a glob."""
    chosen: set[str] = set()
    for glob in where:
        matches = {
            name
            for name in places
            if fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"{glob}.*")
        }
        if not matches:
            some = ", ".join(list(places)[:3])
            raise BadInput(
                f"where: {glob!r} matches no layer that can be adapted; these can: {some}"
                f"{', ...' if len(places) > 3 else ''}"
            )
        chosen |= matches
    return {name: layer for name, layer in places.items() if name in chosen}


def _check_rank(chosen: dict[str, Any], kind: str, rank: int) -> None:
    """Raise `BadInput` if the rank is above the full rank of every layer."""

    def full(weight: Tensor) -> int:
        return min(len(weight), weight[0].numel()) if kind == "lora" else len(weight)

    largest = max(full(layer.weight) for layer in chosen.values())
    if rank > largest:
        raise BadInput(
            f"rank={rank} is above the rank of every adapted layer; give at most {largest}"
        )


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapter of every adapted layer, by the name of the layer; norms have none."""
    found = {}
    for name, module in model.named_modules():
        tensors: Any = module._modules.get("parametrizations")
        adapter = tensors["weight"][0] if tensors is not None and "weight" in tensors else None
        if isinstance(adapter, Adapter):
            found[name] = adapter
    return found


def adapter_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the trained parameters outside the classifier."""
    parts = [*adapters_of(model).values()]
    parts += [module for module in model.modules() if module.__dict__.get(_TRAINED)]  # type: ignore[misc]
    return {id(parameter) for part in parts for parameter in part.parameters()}


def adapter_names(model: nn.Module) -> dict[str, str]:
    """Return the names under which checkpoints keep the tensors of an adapted model.

    Returns:
        Each key of `model.state_dict()`, with its name: that of the base for its tensors, and
        `<layer>.adapter.<part>` for those of an adapter.
    """
    names = {key: key for key in model.state_dict()}
    for layer, adapter in adapters_of(model).items():
        inner = f"{layer}.parametrizations." if layer else "parametrizations."
        outer = f"{layer}." if layer else ""
        for part in ("weight", "bias"):
            if f"{inner}{part}.original" in names:
                names[f"{inner}{part}.original"] = f"{outer}{part}"
        for part in adapter._parameters:
            names[f"{inner}weight.0.{part}"] = f"{layer}{MARK}{part}"
    return names


def merge(model: Model) -> Model:
    """Return a copy in which every layer has absorbed its adapter, with the base's keys.

    Args:
        model: A model with adapters, which is not changed; any other model is copied.
    """
    merged = copy.deepcopy(model)
    for name, adapter in adapters_of(merged).items():
        layer: Any = merged.get_submodule(name)
        tensors = {key: p.detach().cpu().double() for key, p in adapter.named_parameters()}
        results = {}
        for part in ("weight", "bias"):
            if parametrize.is_parametrized(layer, part):
                own: Tensor = layer.parametrizations[part].original.detach()
                values = own.cpu().double()
                result = adapted(
                    values, tensors, adapter.kind, adapter.scale, is_bias=part == "bias"
                )
                results[part] = nn.Parameter(result.to(own))
        without_parametrizations(layer, results)
    return cast(Model, merged)


def merged_weights(model: nn.Module) -> State:
    """Return the state of `merge(model)`."""
    return merge(model).state_dict()
