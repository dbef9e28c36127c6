"""Freeze parameters by name."""

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from zoo.adapters import NORMS, adapter_parameters, adapters_of
from zoo.errors import BadInput

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def freeze(model: nn.Module, globs: Iterable[str]) -> list[nn.Module]:
    """Freeze the parameters that match `globs`.

    Args:
        model: The model, changed in place.
        globs: Patterns of module or parameter names, or `"all-but-head"`, `"all-but-norms"` (the
            classifier is trained, too), or `"all-but-adapters"` (likewise).

    Returns:
        Batch norms of which all parameters are frozen. The caller keeps them in evaluation mode,
        which also freezes their running statistics.

    Raises:
        BadInput: A pattern matches nothing, or all parameters are frozen.
    """
    globs = list(globs)
    frozen: set[int] = set()
    for glob in globs:
        matches = _WORDS[glob](model) if glob in _WORDS else _matching(model, glob)
        if not matches:
            raise BadInput(
                f"train.freeze: {glob!r} matches no module or parameter of the model; compare it"
                " with the names in model.named_parameters()"
            )
        frozen |= matches
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    if globs and not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(f"train.freeze={globs} leaves nothing to train; freeze fewer modules")
    return frozen_norms(model)


class Unfreezing:
    """Trains the parameters that `train.freeze` froze after some epochs.

    The optimizer has all parameters from the start. Those that are frozen have no gradients, so it
    neither changes them nor keeps a state for them.

    Args:
        model: The model, after `freeze`; unfrozen, so that an optimizer can be built for it.
        frozen: The parameters that `freeze` froze.
        norms: The batch norms that `freeze` returned.
        epochs: How many epochs they stay frozen.
    """

    def __init__(
        self, model: nn.Module, frozen: list[nn.Parameter], norms: list[nn.Module], epochs: int
    ) -> None:
        self.frozen, self.norms, self.epochs = frozen, norms, epochs
        for parameter in frozen:
            parameter.requires_grad_(True)

    def start_epoch(self, epoch: int) -> None:
        """Freeze or unfreeze the parameters for an epoch, counted from 0."""
        is_frozen = epoch < self.epochs
        for parameter in self.frozen:
            parameter.requires_grad_(not is_frozen)
        if is_frozen:
            for norm in self.norms:
                norm.eval()


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms of which no parameter is trained, but for adapters behind them.

    A model with adapters is frozen as a whole, so norms without parameters are, too.
    """
    adapters = adapter_parameters(model)
    found = []
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS):
            own = [
                p for p in module.parameters() if id(p) not in adapters or not adapters_of(module)
            ]
            if (own or adapters) and not any(parameter.requires_grad for parameter in own):
                found.append(module)
    return found


def _matching(model: nn.Module, glob: str) -> set[int]:
    """Return the ids of parameters that match, or whose module does."""
    matches = {id(p) for name, p in model.named_parameters() if fnmatch.fnmatch(name, glob)}
    for name, module in model.named_modules():
        if name and fnmatch.fnmatch(name, glob):
            matches |= {id(parameter) for parameter in module.parameters()}
    return matches


def _head(model: nn.Module) -> set[int]:
    """Return the ids of all parameters of the classifier."""
    heads: Any = getattr(model, "get_classifier", tuple)()
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    return {id(parameter) for head in heads for parameter in head.parameters()}


def _all_but_head(model: nn.Module) -> set[int]:
    return _all_but(model, _head(model), "all-but-head", "classifier; give names of modules")


def _all_but_norms(model: nn.Module) -> set[int]:
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    return _all_but(model, norms, "all-but-norms", "norms with weights; freeze by names")


def _all_but_adapters(model: nn.Module) -> set[int]:
    advice = "adapters; give train.adapt, or names of modules"
    return _all_but(model, adapter_parameters(model), "all-but-adapters", advice)


def _all_but(model: nn.Module, kept: set[int], word: str, lacks: str) -> set[int]:
    """Return the ids of all parameters but those kept and those of the classifier."""
    if not kept:
        raise BadInput(f"train.freeze={word}: the model has no {lacks}")
    return {id(parameter) for parameter in model.parameters()} - kept - _head(model)


_WORDS = {
    "all-but-head": _all_but_head,
    "all-but-norms": _all_but_norms,
    "all-but-adapters": _all_but_adapters,
}
