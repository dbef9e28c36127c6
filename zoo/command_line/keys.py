"""The keys of the commands that take settings, and the names that a group can have.

Neither PyTorch nor Hydra is imported.
"""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.settings import RUNS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GROUPS = ("model", "data", "experiment")  # their values are names
FREE_KEYS = ("model.kwargs", "train.optimizer_args", "train.scheduler_args", "train.loss_args")
FREE_KEYS += ("train.adapt_args", "train.experts")


@functools.cache
def keys(command: str) -> dict[str, Any]:
    """Return the dotted keys of a command with the types of their values."""
    return dict(_annotations(RUNS[command]))


def options(group: str) -> list[str]:
    """Return the values of a group: the registered models, or the names of its files."""
    if group == "model":
        return registry.list_models()
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def nearest_key(command: str, key: str) -> str | None:
    """Return the key of a command that the user may have meant."""
    names = [*keys(command), "experiment"]
    leaf = key.split(".")[-1].lower().replace("-", "_")
    same_leaf = [name for name in sorted(names) if name.split(".")[-1] == leaf]
    near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.5)
    near_leaf = difflib.get_close_matches(leaf, [name.split(".")[-1] for name in names], n=1)
    by_leaf = [name for name in sorted(names) if name.split(".")[-1] in near_leaf]
    return next(iter(same_leaf or near or by_leaf), None)


def _annotations(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for entry in dataclasses.fields(schema):
        yield prefix + entry.name, entry.type
        if dataclasses.is_dataclass(entry.type):
            yield from _annotations(typing.cast(type, entry.type), f"{prefix}{entry.name}.")
