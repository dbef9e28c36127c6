"""Restore the state of a training run from a checkpoint; a state that does not fit is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.errors import BadWeights, first_line
from zoo.training.checkpoint_schema import damaged
from zoo.training.method import TrainingMethod
from zoo.training.optim import FUSED_OPTIMIZERS


def restore_module(module: nn.Module, state: Mapping[str, Tensor], entry: str, path: Path) -> None:
    """Load the state of a model or a loss.

    Args:
        module: Changed in place.
        state: The saved state.
        entry: Its name in the checkpoint, for messages.
        path: The checkpoint, for messages.

    Raises:
        BadWeights: Names, shapes or types differ, or a number is not finite.
    """
    own, parameters = module.state_dict(), dict(module.named_parameters())
    for key in [*own, *state]:
        if key not in state:
            raise damaged(path, f"{entry} has no {key}")
        if key not in own:
            raise damaged(path, f"{entry} has {key}, which the model does not have")
        saved = state[key]
        if saved.layout != torch.strided or saved.device.type == "meta":
            raise damaged(path, f"{entry} has no values for {key}")
        if key not in parameters:  # buffers, such as ranges, may change their size or be infinite
            continue
        if saved.shape != own[key].shape or saved.dtype != own[key].dtype:
            raise damaged(
                path, f"{entry} has {_described(saved)} as {key}, not {_described(own[key])}"
            )
        if not saved.isfinite().all():
            raise damaged(path, f"{entry} has numbers that are not finite in {key}")
    try:
        module.load_state_dict(state)  # not a copy, which would lose its versions
    except RuntimeError as error:
        raise damaged(path, f"{entry} does not fit ({first_line(error)})") from error


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], path: Path) -> None:
    """Load the state of an optimizer; the first update shows whether the tensors fit.

    Raises:
        BadWeights: It has other groups, settings or parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = state["param_groups"]
    if len(groups) != len(own):
        raise damaged(path, f"optimizer.param_groups has {len(groups)} groups, not {len(own)}")
    for number, (group, expected) in enumerate(zip(groups, own, strict=True)):
        where = f"optimizer.param_groups[{number}]"
        if group.get("params") != expected["params"]:
            raise damaged(path, f"{where} has other parameters than the model")
        for key in (group.keys() - {"initial_lr"}) ^ (expected.keys() - {"initial_lr"}):
            raise damaged(path, f"{where}.{key} is {'missing' if key in expected else 'unknown'}")
        for key, value in group.items():
            if _kind(value) != _kind(expected.get(key, 0.0)):
                raise damaged(path, f"{where}.{key} is a {type(value).__name__}")
    parameters = dict(
        pair
        for saved, live in zip(own, optimizer.param_groups, strict=True)
        for pair in zip(saved["params"], live["params"], strict=True)
    )
    for index, entries in state["state"].items():
        if index not in parameters or not isinstance(entries, dict):
            raise damaged(path, f"optimizer.state has an invalid entry {str(index)[:40]!r}")
        for name, value in entries.items():
            if isinstance(value, Tensor) and not _fits(value, parameters[index], optimizer):
                shape = "x".join(map(str, value.shape))
                raise damaged(path, f"optimizer.state[{index}].{name} is a {shape} tensor")
    plain = getattr(optimizer, "optimizer", optimizer)  # without Fabric's wrapper
    names = {frozenset(map(str, entries)) for entries in state["state"].values()}
    if isinstance(plain, FUSED_OPTIMIZERS) and len(names) > 1:
        raise damaged(path, "optimizer.state has other entries for some parameters")
    try:
        optimizer.load_state_dict(state)
    except Exception as error:  # optimizers raise errors of any kind
        raise damaged(path, f"optimizer does not fit ({first_line(error)})") from error


def _fits(value: Tensor, parameter: Tensor, optimizer: Any) -> bool:
    """Return whether a tensor of the state has a valid shape.

    PyTorch's fused kernels do not check it, and would write to memory of others. The state of
    other optimizers may have any shape, and their first update shows whether it fits.
    """
    plain = getattr(optimizer, "optimizer", optimizer)  # without Fabric's wrapper
    if value.layout != torch.strided or value.device.type == "meta":
        return False
    if not isinstance(plain, FUSED_OPTIMIZERS) or value.numel() == 1:
        return True
    return value.shape == parameter.shape and value.is_floating_point()


def _check_keys(part: str, own: dict[str, Any], state: dict[str, Any], path: Path) -> None:
    for key in own.keys() ^ state.keys():
        raise damaged(path, f"{part}.{key} is {'missing' if key in own else 'unknown'}")


def restore_scaler(precision: Any, state: dict[str, Any], path: Path) -> None:
    """Load the state of the gradient scaler of fp16; other precisions have none.

    Raises:
        BadWeights: It belongs to another precision, or is not valid.
    """
    own = precision.state_dict()
    _check_keys("scaler", own, state, path)
    for key, value in own.items():
        saved = state[key]
        if _kind(saved) != _kind(value) or not 0 <= saved < float("inf"):
            raise damaged(path, f"scaler.{key} is {str(saved)[:40]}")
    precision.load_state_dict(state)


def restore_method(method: TrainingMethod, state: dict[str, Any], path: Path) -> None:
    """Load the state of a training method.

    Raises:
        BadWeights: It belongs to another method, or is not valid.
    """
    own = method.state_dict()
    _check_keys("method", own, state, path)
    try:
        method.load_state_dict(state)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"method does not fit ({first_line(error)})") from error


def misfit(error: Exception, path: Path) -> BadWeights:
    """Return the error for a first update that failed with the restored optimizer."""
    return damaged(path, f"the state of the optimizer does not fit ({first_line(error)})")


def _kind(value: Any) -> object:
    """Return the kind of a setting: numbers are one kind, as in 0 and 0.0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return type(value)
    return float


def _described(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
