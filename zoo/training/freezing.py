"""Freeze parameters by name."""

import fnmatch
from collections.abc import Iterable

from torch import nn

from zoo.errors import BadInput

ALL_BUT_HEAD = "all-but-head"
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def freeze(model: nn.Module, globs: Iterable[str]) -> list[nn.Module]:
    """Freeze the parameters that match `globs`.

    Args:
        model: The model, changed in place.
        globs: Patterns of module or parameter names, or `"all-but-head"`.

    Returns:
        Batch norms of which all parameters are frozen. The caller keeps them in evaluation mode,
        which also freezes their running statistics.

    Raises:
        BadInput: A pattern matches nothing, or all parameters are frozen.
    """
    globs = list(globs)
    frozen: set[int] = set()
    for glob in globs:
        matches = _all_but_head(model) if glob == ALL_BUT_HEAD else _matching(model, glob)
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
    return [
        module
        for module in model.modules()
        if isinstance(module, _BATCH_NORMS)
        and (parameters := list(module.parameters()))
        and all(id(parameter) in frozen for parameter in parameters)
    ]


def _matching(model: nn.Module, glob: str) -> set[int]:
    """Return the ids of parameters that match, or whose module does."""
    matches = {id(p) for name, p in model.named_parameters() if fnmatch.fnmatch(name, glob)}
    for name, module in model.named_modules():
        if name and fnmatch.fnmatch(name, glob):
            matches |= {id(parameter) for parameter in module.parameters()}
    return matches


def _all_but_head(model: nn.Module) -> set[int]:
    """Return the ids of all parameters outside the classifier."""
    heads = model.get_classifier()  # type: ignore[operator]
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    kept = {id(parameter) for head in heads for parameter in head.parameters()}
    if not kept:
        raise BadInput(
            f"train.freeze={ALL_BUT_HEAD}: the model has no classifier; give names of modules"
        )
    return {id(parameter) for parameter in model.parameters()} - kept
