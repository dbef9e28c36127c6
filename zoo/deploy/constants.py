"""Constant folding in traced programs.

In a program with a static size, everything that does not depend on the images can be computed once:
position tables resampled to the size of a feature map, or weights computed from other weights.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg


def fold(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with its constant expressions computed and stored as buffers."""
    module: Any = program.module(check_guards=False)
    fold_in_place(module)
    args, kwargs = program.example_inputs or ((), {})
    return torch.export.export(module, args, kwargs)


def fold_in_place(module: Any, *, fold_parameters: bool = True) -> None:
    """Replace constant expressions of a traced module by buffers.

    Args:
        module: Module of an exported program; it is modified.
        fold_parameters: Also fold what depends on parameters, which can then not be trained.
    """
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(module, node.target)
            if fold_parameters or not isinstance(value, nn.Parameter):
                known[node] = value
        elif node.op == "call_function" and _is_constant(node, known):
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if node.op == "get_attr" or not isinstance(value, Tensor):
            continue
        if all(user in known for user in node.users):
            continue  # an intermediate result of another constant
        name = f"folded_{node.name}"
        module.register_buffer(name, value)
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta.update(node.meta)
        node.replace_all_uses_with(constant, lambda user: user not in known)
    # eliminate_dead_code would keep assertions about constants, because they may raise.
    for node in reversed(known):
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _is_constant(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Return whether a call only depends on known values and is deterministic."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and all(other in known for other in node.all_input_nodes)


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
