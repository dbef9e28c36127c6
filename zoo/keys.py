"""Parameter names of published checkpoints, and how they are converted to ours.

A family lists the key styles in which its weights are published. Conversion goes one way: from a
published style to our own. A style is a table of rows `(pattern, replacement)`:

    (r"patch_embed\\.conv(\\d)\\.", "stem.{1-1}.conv."),

The pattern matches the beginning of a key. In the replacement `\\1` is a group, and `{1-1}` the
number in that group minus one; `//`, `%`, `*` and `+` work as well, from left to right.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.errors import shown

State = dict[str, Tensor]
Replacement = str | Callable[[re.Match], str] | None
Rows = Sequence[tuple[str, Replacement]]


@dataclass(frozen=True)
class KeyStyle:
    """One published way to name the parameters of a family.

    Attributes:
        name: Library or repository that uses these names, such as `"timm"` or `"torchvision"`.
        marker: A key that only this style has.
        convert: `(state, model) -> state` with our own names, if `rows` cannot express it.
        rows: The table, or `model -> table` where the names depend on the variant.
        inside: Further rows that match anywhere in a key; all are applied, after `rows`.
        tensors: `(state, model) -> state`, applied at the end: for tensors that must be computed.
    """

    name: str
    marker: str
    convert: Callable[[State, Any], State] | None = None
    rows: Rows | Callable[[Any], Rows] = ()
    inside: Iterable[tuple[str, str]] = ()
    tensors: Callable[[State, Any], State] | None = None

    def to_own(self, state: State, model: Any) -> State:
        """Return `state` with our own names, for `model`."""
        if self.convert is not None:
            return self.convert(dict(state), model)
        state = rename(state, self.rows(model) if callable(self.rows) else self.rows)
        for pattern, new in self.inside:
            state = {re.sub(pattern, new, key): tensor for key, tensor in state.items()}
        return state if self.tensors is None else self.tensors(state, model)


def recognise(state: State, styles: Iterable[KeyStyle]) -> KeyStyle | None:
    """Return the style that `state` is in, or None."""
    return next((style for style in styles if style.marker in state), None)


def convert_keys(state: State, model: nn.Module) -> State:
    """Return `state` with the model's own names, and with tensors of its sizes.

    Tables that were learnt at another image size are resampled. Parts that a features-only model
    lacks are dropped.
    """
    own = model.state_dict()
    style = recognise(state, getattr(model, "key_styles", ()))
    if style is not None:
        state = style.to_own(state, model)
        state = {key: _shaped_like(own.get(key), tensor) for key, tensor in state.items()}
    for name, module in model.named_modules():
        fit: Any = getattr(module, "fit_table", None)
        key = f"{name}.table"
        if fit is not None and key in state:
            state[key] = fit(state[key])
    if getattr(model, "is_partial", False):
        state = {key: value for key, value in state.items() if key in own}
    return state


def _shaped_like(own: Tensor | None, tensor: Tensor) -> Tensor:
    """Add or drop axes of length 1: a 1x1 convolution may be published as a linear layer."""
    if own is None or [n for n in own.shape if n != 1] != [n for n in tensor.shape if n != 1]:
        return tensor
    return tensor.reshape(own.shape)


def misfits(state: State, model: nn.Module) -> list[str]:
    """Return a line each for missing keys, unexpected keys and tensors of another shape."""
    own = model.state_dict()
    counters = "num_batches_tracked"  # no effect on outputs; missing in old files
    missing = [key for key in own if key not in state and not key.endswith(counters)]
    unexpected = [key for key in state if key not in own and not key.endswith(counters)]
    shapes = [
        f"{key} is {_shape(state[key])}, the model has {_shape(own[key])}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    lines = []
    if missing:
        lines.append(_listed("missing", missing))
    if unexpected:
        near = difflib.get_close_matches(unexpected[0], missing, n=1)
        lines.append(_listed("unexpected", unexpected) + (f" (like {near[0]}?)" if near else ""))
    return lines + shapes


def _listed(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(shown(key)[:100] for key in keys[:3])}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def rename(state: State, rows: Rows) -> State:
    """Rename each key by the first row that matches; a key without a match stays as it is.

    Args:
        state: The tensors by their old names.
        rows: Pattern for the beginning of a key, and its replacement; None drops the key.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rows]
    renamed: State = {}
    for key, tensor in state.items():
        fits = ((pattern.match(key), new) for pattern, new in compiled)
        fit, new = next(((fit, new) for fit, new in fits if fit), (None, None))
        if fit is None:
            renamed[key] = tensor
        elif new is not None:
            start = new(fit) if callable(new) else _filled(fit, new)
            renamed[start + key[fit.end() :]] = tensor
    return renamed


_NUMBER = re.compile(r"\{(\w+?)((?:(?://|[-+*%])\d+)+)\}")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "//": int.__floordiv__,
    "%": int.__mod__,
    "*": int.__mul__,
    "+": int.__add__,
    "-": int.__sub__,
}


def _filled(fit: re.Match, new: str) -> str:
    """Insert the groups of a match, and numbers computed from them, into a replacement."""

    def number(slot: re.Match) -> str:
        value = int(fit[int(slot[1]) if slot[1].isdigit() else slot[1]])
        for operation, operand in re.findall(r"(//|[-+*%])(\d+)", slot[2]):
            value = _OPERATIONS[operation](value, int(operand))
        return str(value)

    return fit.expand(_NUMBER.sub(number, new))


def numbered_blocks(model: Any) -> list[tuple[int, int, Any]]:
    """Return (stage number, number in the stage, block) for every block of a model."""
    return [
        (s, j, block)
        for s, stage in enumerate(model.stages)
        for j, block in enumerate(stage.blocks.children())
    ]


def prefixed(old: str, new: str, parts: Rows) -> list[tuple[str, Any]]:
    """Return rows with a pattern and a replacement prepended to each of them."""
    return [(old + part, None if name is None else f"{new}{name}") for part, name in parts]
