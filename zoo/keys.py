"""Names of parameters in published checkpoints, and how they become ours.

A family lists the key styles its weights are published in. Conversion goes one way: from a public
style to our own.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class KeyStyle:
    """One published way of naming the parameters of a family.

    Attributes:
        name: Who names them so: `"timm"`, `"torchvision"`, an author's repository.
        marker: A key that only this style has.
        convert: `(state, model) -> state` in our own names; `model` is the one to be filled.
    """

    name: str
    marker: str
    convert: Callable[[State, Any], State]


def recognise(state: State, styles: Iterable[KeyStyle]) -> KeyStyle | None:
    """Return the style that `state` is in; none if it is in none of `styles`."""
    return next((style for style in styles if style.marker in state), None)


def rename(state: State, rules: Iterable[tuple[str, str | Callable[[re.Match], str]]]) -> State:
    """Rename every key by the first rule that fits it; keys that no rule fits stay as they are.

    Args:
        state: The tensors by their old names.
        rules: Pairs of a regular expression for the beginning of a key and what replaces the match.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed: State = {}
    for key, tensor in state.items():
        for pattern, new in compiled:
            fit = pattern.match(key)
            if fit:
                key = (fit.expand(new) if isinstance(new, str) else new(fit)) + key[fit.end() :]
                break
        renamed[key] = tensor
    return renamed
