"""Merge adapters into the tensors of the layers that they adapt.

A checkpoint of adapters has the tensors that differ from those of a base: `state_dict` keeps the
adapters of layer `x` as `x.adapter.*`, and everything else that was trained under its usual name.
`zoo.adapters` makes and trains adapters; here they are only added to the base, which needs no
model.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights
from zoo.keys import State

KEY = "adapters"  # of a checkpoint: kind, rank, alpha, base
MARK = ".adapter."


def adapted(
    values: Tensor, tensors: Mapping[str, Tensor], kind: str, scale: float, *, is_bias: bool
) -> Tensor:
    """Return the weight or the bias of a layer together with its adapter.

    With `s = scale`, W the weight (out x ...) and b the bias: `ssf` gives gamma W and
    gamma b + beta; `lora` W + s B A and b; `linear` (1 + s U D) W and (1 + s U D) b. A or D is
    called `down`, B or U is called `up`.

    Args:
        values: The weight, or the bias of `out` numbers.
        tensors: The adapter: gamma and beta of `out` numbers (beta only with a bias), or up
            (out x rank) and down (rank x ..., as the weight; for `linear` rank x out).
        kind: `"ssf"`, `"lora"` or `"linear"`.
        scale: The factor s.
        is_bias: Whether `values` is the bias.
    """
    if kind == "ssf":
        gamma = tensors["gamma"]
        if is_bias:
            return gamma * values + tensors["beta"]
        return gamma.reshape(-1, *[1] * (values.ndim - 1)) * values
    up, down = tensors["up"], tensors["down"]
    if kind == "lora":
        return values if is_bias else values + scale * (up @ down.flatten(1)).reshape(values.shape)
    added = up @ (down @ values.reshape(len(values), -1))
    return values + scale * added.reshape(values.shape)


def merged_state(base: State, saved: Mapping[str, Tensor], about: Mapping[str, Any]) -> State:
    """Return the state of the whole model, in which every layer has absorbed its adapter.

    Sums are formed in float64 and rounded once.

    Args:
        base: The state of the base, under the names of the model.
        saved: The `state_dict` of a checkpoint of adapters.
        about: Its entry `adapters`.
    """
    whole = {**base, **{key: value for key, value in saved.items() if MARK not in key}}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, mark, part = key.rpartition(MARK)
        if mark:
            layers.setdefault(name, {})[part] = value.double()
    for name, tensors in layers.items():
        for part in ("weight", "bias"):
            values = whole.get(f"{name}.{part}")  # missing in a part of the model
            if values is not None:
                double = values.double()
                result = adapted(
                    double, tensors, about["kind"], about["scale"], is_bias=part == "bias"
                )
                whole[f"{name}.{part}"] = result.to(values.dtype)
    return whole


def identity(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {list(value.shape)};".encode("utf-8", "replace"))
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def check_base(found: str, about: Mapping[str, Any], source: str, named: str) -> None:
    """Raise `BadWeights` unless the base has the hash that a checkpoint of adapters recorded.

    Args:
        found: The hash of the base.
        about: The entry `adapters` of the checkpoint.
        source: Where the base comes from.
        named: The checkpoint, for messages.
    """
    wanted = str(about["base"]["sha256"])
    if found != wanted:
        raise BadWeights(
            f"{named} has only adapters for a base with sha256 {wanted[:12]}, and {source} has"
            f" {found[:12]}: other weights; give model.base=<the base's run or file> (in Python:"
            " base=...)"
        )


def with_base(content: Mapping[str, Any], source: str, named: str) -> dict[str, Any]:
    """Return a checkpoint of adapters with another place of its base.

    Raises:
        BadWeights: The checkpoint has no adapters.
    """
    if KEY not in content:
        raise BadWeights(
            f"base={source} has no effect: {named} is no checkpoint of adapters (train.adapt);"
            " leave it out"
        )
    about = dict(content[KEY])
    return {**content, KEY: {**about, "base": {**about["base"], "source": source}}}
