"""Constants of a traced program, computed once instead of at every call.

In a program of one size, what depends on no image is known: position tables resampled to the size
of the map, weights that are made of others.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg


def fold(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with what is computed from weights alone in the place of the weights."""
    module: Any = program.module(check_guards=False)
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = _attribute(module, node.target)
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
        node.replace_all_uses_with(constant, lambda user: user not in known)
    for node in reversed(known):  # checks of constants, too, which count as having an effect
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    args, kwargs = program.example_inputs or ((), {})
    return torch.export.export(module, args, kwargs)


def _is_known(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(other in known for other in inputs)


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
