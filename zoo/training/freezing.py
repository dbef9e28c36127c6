"""Parameters that stay as they are."""

import fnmatch
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import BadInput

ALL_BUT_HEAD = "all-but-head"


def freeze(model: nn.Module, globs: Iterable[str]) -> list[nn.Module]:
    """Stop the gradients of what `globs` name.

    Args:
        model: Changed in place.
        globs: Names of modules or parameters, or `"all-but-head"`.

    Returns:
        The batch norms that are frozen whole. They must stay in eval mode, so that their
        statistics stay too.

    Raises:
        BadInput: A glob names nothing, or nothing is left to train.
    """
    globs = list(globs)
    frozen: set[int] = set()
    for glob in globs:
        found = _of_all_but_head(model) if glob == ALL_BUT_HEAD else _named(model, glob)
        if not found:
            raise BadInput(f"train.freeze: {glob!r} names no module or parameter of the model")
        frozen |= found
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    if globs and not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(f"train.freeze={globs} leaves nothing to train")
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and (own := list(module.parameters()))
        and all(id(parameter) in frozen for parameter in own)
    ]


def _named(model: nn.Module, glob: str) -> set[int]:
    found = {id(p) for name, p in model.named_parameters() if fnmatch.fnmatch(name, glob)}
    for name, module in model.named_modules():
        if name and fnmatch.fnmatch(name, glob):
            found |= {id(parameter) for parameter in module.parameters()}
    return found


def _of_all_but_head(model: nn.Module) -> set[int]:
    heads = model.get_classifier()  # type: ignore[operator]
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    kept = {id(parameter) for head in heads for parameter in head.parameters()}
    if not kept:
        raise BadInput(f"train.freeze={ALL_BUT_HEAD}: the model has no classifier")
    return {id(parameter) for parameter in model.parameters()} - kept
