"""The weights of a model under timm's names, where timm has the same model."""

import contextlib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from zoo import registry
from zoo.hub import BRIDGED
from zoo.keys import convert_keys

State = dict[str, Tensor]

# Relative to the spread of the outputs; sums in another order differ by less.
TOLERANCE = 1e-4


def architecture_and_state(
    model: nn.Module, name: str, args: dict[str, Any], size: tuple[int, ...]
) -> tuple[str, State, dict[str, Any]]:
    """Return how a model is published.

    Args:
        model: The model in evaluation mode.
        name: Its name for `zoo.create_model`.
        args: The other arguments that it was built with.
        size: Image size C H W, for comparing it with timm's.

    Returns:
        The architecture: timm's name if timm builds a model with the same outputs, else our own
        with the prefix under which `zoo.timm_bridge` registers it. The weights under the names of
        that architecture. The entries of its pretrained configuration that depend on names.
    """
    own = dict(model.state_dict())
    if registry.is_timm(name):
        return name.removeprefix(registry.TIMM), own, _named_layers(model)
    found = _of_timm(model, name, args, size)
    if found is not None:
        twin, state = found
        return name, state, _named_layers(twin)
    prefix = BRIDGED if registry.get_spec(name).task == "classification" else ""
    layers: dict[str, Any] = {}
    if hasattr(model, "first_conv_name"):
        names: Any = model
        classifiers = tuple(names.classifier_names())
        layers = {
            "first_conv": names.first_conv_name(),
            "classifier": classifiers[0] if len(classifiers) == 1 else list(classifiers),
        }
    return prefix + name, own, layers


def _named_layers(model: Any) -> dict[str, Any]:
    cfg = model.pretrained_cfg
    keys = ("first_conv", "classifier", "pool_size", "fixed_input_size")
    return {key: cfg[key] for key in keys if cfg.get(key) is not None}


def _of_timm(
    model: nn.Module, name: str, args: dict[str, Any], size: tuple[int, ...]
) -> tuple[nn.Module, State] | None:
    """Return timm's model of this name with our weights, and those weights under its names."""
    if not timm.is_model(name):
        return None
    with torch.random.fork_rng(devices=[]), contextlib.suppress(Exception):
        # timm may lack an argument, or build another model under this name
        twin = timm.create_model(name, **args).eval()
        state = _translated(model, twin)
        if state is not None:
            twin.load_state_dict(state)
            if _same_outputs(model, twin, size):
                return twin, state
    return None


def _translated(model: nn.Module, twin: nn.Module) -> State | None:
    """Return the model's weights under the names of `twin`; None if they do not correspond.

    Each tensor of `twin` is filled with a number, whose place after conversion to our names tells
    where it belongs.
    """
    theirs = twin.state_dict()
    keys = list(theirs)
    marks = {key: torch.full_like(theirs[key], number) for number, key in enumerate(keys)}
    state = dict(theirs)
    found = set()
    own = model.state_dict()
    for name, mark in convert_keys(marks, model).items():
        value = own.get(name)
        if value is None or mark.numel() == 0 or (mark != mark.flatten()[0]).any():
            return None
        key = keys[int(mark.flatten()[0])]
        if key in found or theirs[key].numel() != value.numel():
            return None
        found.add(key)
        state[key] = value.reshape(theirs[key].shape)
    parameters = {key for key, _ in twin.named_parameters()}
    return state if parameters <= found and len(found) == len(own) else None


@torch.no_grad()
def _same_outputs(model: nn.Module, twin: nn.Module, size: tuple[int, ...]) -> bool:
    images = torch.randn(1, *size)
    ours, theirs = model(images), twin(images)
    spread = float(ours.std()) or 1.0
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= TOLERANCE * spread
