"""How important the units of a model's groups are: the scores that pruning ranks them by.

`magnitude`: in every layer, the sum of the squared weights of a unit, divided by the mean over the
units of the group; then the mean over layers (Torch-Pruning's default). `hesso`: five terms of
weight 0.2, each divided by its norm over all units: magnitude, mean magnitude, 1 + cosine of
weights and gradient, |w g| and (w g)^2 / 2 (HESSO). `norm`: the scale of the batch norm of a unit.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.widths import Slice
from zoo.errors import BadInput, unknown_value
from zoo.narrowing import Place

SCORES = ("magnitude", "hesso", "norm")
Scores = dict[str, Tensor]  # group -> one number per unit


def check_score(name: str, key: str) -> None:
    """Raise `BadInput` unless `name` is one of `SCORES`."""
    if name not in SCORES:
        raise BadInput(unknown_value(key, name, SCORES))


def score(name: str, found: Mapping[str, Place]) -> Scores:
    """Return the importance of every unit.

    Args:
        name: One of `SCORES`; `"hesso"` reads the gradients of the parameters.
        found: The groups of a model.

    Raises:
        BadInput: A group has no batch norm, or the parameters have no gradients.
    """
    with torch.no_grad():
        return {"magnitude": _magnitude, "hesso": _hesso, "norm": _norm}[name](found)


def _magnitude(found: Mapping[str, Place]) -> Scores:
    scores = {}
    for key, place in found.items():
        layers = []
        for part, tensor in _parameters(place):
            if tensor.ndim > 1:
                sums = unit_rows(tensor, part).square().sum(1)
                layers.append(sums / sums.mean().clamp(min=1e-30))
        scores[key] = torch.stack(layers).mean(0)
    return scores


def _norm(found: Mapping[str, Place]) -> Scores:
    scores = {}
    for key, place in found.items():
        scales = [
            unit_rows(tensor, part).abs().mean(1)
            for part, tensor in _parameters(place)
            if isinstance(_layer(place, part), nn.modules.batchnorm._BatchNorm)
            and part.tensor.endswith("weight")
        ]
        if not scales:
            raise BadInput(
                f"score=norm needs a batch norm in every group, but {key} has none; use"
                " score=magnitude"
            )
        scores[key] = torch.stack(scales).mean(0)
    return scores


def _hesso(found: Mapping[str, Place]) -> Scores:
    terms: dict[str, Tensor] = {}
    for key, place in found.items():
        weights, gradients = [], []
        for part, tensor in _parameters(place):
            gradient = tensor.grad
            if gradient is None:
                gradient = torch.zeros_like(tensor)
            weights.append(unit_rows(tensor, part))
            gradients.append(unit_rows(gradient, part))
        w, g = torch.cat(weights, 1), torch.cat(gradients, 1)
        size, product = w.norm(dim=1), (w * g).sum(1)
        cosine = product / (size * g.norm(dim=1)).clamp(min=1e-30)
        terms[key] = torch.stack(
            [size, size / w.shape[1] ** 0.5, 1 + cosine, product.abs(), product.square() / 2]
        )
    if all(not bool(term[3].any()) for term in terms.values()):
        raise BadInput("score=hesso reads gradients, and all of them are zero; train first")
    norms = torch.cat(list(terms.values()), dim=1).norm(dim=1).clamp(min=1e-30)
    return {key: (0.2 * term / norms[:, None]).sum(0) for key, term in terms.items()}


def unit_rows(tensor: Tensor, part: Slice) -> Tensor:
    """Return the numbers of `tensor` that belong to each unit: units x numbers."""
    first = tensor.detach().movedim(part.axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    units = part.indices[0].shape[1]
    rows = [
        first[table.transpose(0, 1).flatten().to(tensor.device)].reshape(units, -1)
        for table in part.indices
    ]
    return torch.cat(rows, dim=1)


def add_gradients(
    model: nn.Module, batches: Iterable[tuple[Tensor, Any]], loss: Callable[[Any, Any], Tensor]
) -> None:
    """Give the parameters of a model the gradient of the loss, summed over batches.

    Args:
        model: In evaluation mode.
        batches: Images B C H W and their targets.
        loss: Maps outputs and targets to a number.
    """
    model.zero_grad()
    for images, targets in batches:
        loss(model(images), targets).backward()


def _parameters(place: Place) -> list[tuple[Slice, nn.Parameter]]:
    named = dict(place.block.named_parameters())
    return [(part, named[part.tensor]) for part in place.group.slices if part.tensor in named]


def _layer(place: Place, part: Slice) -> nn.Module:
    return place.block.get_submodule(part.tensor.rpartition(".")[0])
