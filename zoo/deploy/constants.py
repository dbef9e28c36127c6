"""Constants of a traced program, computed once instead of at every call.

In a program of one size, what depends on no image is known: position tables resampled to the size
of the map, weights that are made of others.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg


def fold(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with what is computed from weights alone in the place of the weights."""
    module: Any = program.module(check_guards=False)
    fold_in(module)
    args, kwargs = program.example_inputs or ((), {})
    return torch.export.export(module, args, kwargs)


def fold_in(module: Any, *, trained: bool = True) -> None:
    """Put constants in the place of what computes them, in a traced module itself.

    Args:
        module: What `torch.export` made of a model.
        trained: Fold what depends on parameters, too; they cannot be trained then.
    """
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(module, node.target)
            if trained or not isinstance(value, nn.Parameter):
                known[node] = value
        elif node.op == "call_function" and _is_known(node, known):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if node.op == "get_attr" or not isinstance(value, Tensor):
            continue
        if all(user in known for user in node.users):
            continue  # only on the way to another constant
        name = f"folded_{node.name}"
        module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta.update(node.meta)
        node.replace_all_uses_with(constant, lambda user: user not in known)
    for node in reversed(known):  # checks of constants, too, which count as having an effect
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _is_known(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Say whether a call depends on what is known alone, and gives the same at every call."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and all(other in known for other in node.all_input_nodes)


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
