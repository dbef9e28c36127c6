"""Narrower models: which widths a model has, and how they are cut.

The widths of a cut model are a table such as `{"stages.2.blocks.1.hidden": 88, "stages.3.blocks.2":
0}`: the path of a block and the name of its group with the number of units that are left, or the
path of a block that was dropped. `zoo.create_model(..., widths=table)` builds it again.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.blocks.widths import Group, groups_of, narrow
from zoo.errors import BadInput, unknown_value

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """A group of a model.

    Attributes:
        path: Path of the block.
        block: The block that declares the group.
        group: The group.
    """

    path: str
    block: nn.Module
    group: Group


def places(model: nn.Module) -> dict[str, Place]:
    """Return all groups of a model by their names, in the order of its modules."""
    return {
        f"{path}.{group.name}".lstrip("."): Place(path, block, group)
        for path, block in model.named_modules()
        for group in groups_of(block)
    }


def hidden_places(model: nn.Module) -> dict[str, Place]:
    """Return the groups of hidden channels, without those of heads."""
    return {n: place for n, place in places(model).items() if place.group.name.startswith("hidden")}


def prefix(found: Mapping[str, Place], share: float) -> dict[str, Tensor]:
    """Return the first units of each group: a share of them, rounded up to a fast width."""
    return {
        name: torch.arange(min(w for w in place.group.widths() if w >= share * place.group.width))
        for name, place in found.items()
    }


def droppable(model: nn.Module) -> list[str]:
    """Return the paths of the blocks that add a branch to their input, and follow each other."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, sequence in model.named_modules()
        if isinstance(sequence, nn.Sequential)
        for name, block in sequence.named_children()
        if getattr(block, "droppable", False)
    ]


def widths_of(model: nn.Module) -> dict[str, int]:
    """Return the number of units of every group."""
    return {name: place.group.width for name, place in places(model).items()}


def cut(
    model: Model, kept: Mapping[str, Sequence[int] | Tensor], dropped: Iterable[str] = ()
) -> Model:
    """Return a copy of a model without some units and blocks.

    Args:
        model: Any model of this package; it is not changed.
        kept: Group -> numbers of the units to keep, in the order that they will have; other
            groups keep all.
        dropped: Paths of the blocks to replace by identities.

    Raises:
        BadInput: There is no such group, unit or block, or no unit is kept.
    """
    twin = copy.deepcopy(model)
    _cut(twin, kept, dropped)
    return twin


def apply_widths(model: nn.Module, widths: Mapping[str, Any]) -> None:
    """Cut a model in place to a table of widths; the first units stay.

    Raises:
        BadInput: The model has no such group or block, or a width is not between 1 and its own.
    """
    if not isinstance(widths, Mapping):
        raise BadInput(f"widths={widths!r} must be a table of groups and numbers of units")
    own = widths_of(model)
    dropped = [name for name, width in widths.items() if name not in own and width == 0]
    for name, width in widths.items():
        if name in dropped:
            continue
        if name not in own:
            raise BadInput(_unknown(model, name, own))
        if type(width) is not int or not 1 <= width <= own[name]:
            raise BadInput(
                f"widths[{name!r}]={width!r} must be a whole number from 1 to {own[name]}"
            )
    kept = {name: range(width) for name, width in widths.items() if name not in dropped}
    _cut(model, kept, dropped)


def saved_widths(content: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the widths of a pruned model that a checkpoint states; None if it states none."""
    model = content.get("model")
    widths = model.get("widths") if isinstance(model, Mapping) else None
    return widths if isinstance(widths, dict) else None  # WaveMix has a sequence of this name


def table_of(before: nn.Module, after: nn.Module, dropped: Iterable[str] = ()) -> dict[str, int]:
    """Return the widths of `after` that differ from those of `before`, and the dropped blocks."""
    full = widths_of(before)
    changed = {name: width for name, width in widths_of(after).items() if width != full[name]}
    return changed | dict.fromkeys(dropped, 0)


def _unknown(model: nn.Module, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not names:
        return f"{type(model).__name__} has no width that can be cut; leave widths out"
    return unknown_value("group of widths", name, names)


def _cut(
    model: nn.Module, kept: Mapping[str, Sequence[int] | Tensor], dropped: Iterable[str]
) -> None:
    found = places(model)
    for name, units in kept.items():
        if name not in found:
            raise BadInput(_unknown(model, name, found))
        group = found[name].group
        chosen = torch.as_tensor(list(units), dtype=torch.long)
        is_valid = len(chosen) > 0 and bool(((chosen >= 0) & (chosen < group.width)).all())
        if not is_valid or len(chosen.unique()) != len(chosen):
            raise BadInput(
                f"{name}: give the numbers of the units to keep, at least one and each once, from"
                f" 0 to {group.width - 1}"
            )
    for name, units in kept.items():
        # Read again: a block with two groups has other positions after the first cut.
        block, wanted = found[name].block, found[name].group.name
        (group,) = (group for group in groups_of(block) if group.name == wanted)
        chosen = torch.as_tensor(list(units), dtype=torch.long)
        if len(chosen) < group.width or not torch.equal(chosen, torch.arange(group.width)):
            narrow(block, group, chosen)
    for path in dropped:
        if path not in droppable(model):
            raise BadInput(unknown_value("block to drop", path, droppable(model)))
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
