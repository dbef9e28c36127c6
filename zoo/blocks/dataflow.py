"""Which layer of a module reads just what another one writes, found by tracing the module alone."""

from collections import Counter
from typing import Any

from torch import fx, nn


class _Leaves(fx.Tracer):
    """Every module inside is a call of its own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the pairs of layers of which the second is all that reads what the first writes.

    Layers are named as `module` names them, as in `blocks.0`. Both of a pair are called once, by
    `module` itself. A module whose flow depends on values cannot be traced: no pair is known of it.
    """
    try:
        graph = _Leaves().trace(module)
    except Exception:  # whatever a forward raises that is given no tensor
        return []
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # a layer of two names, or one whose tensors are read beside the call, is not only what it seems
    names = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def alone(target: str) -> bool:
        layer = module.get_submodule(target)
        return calls[target] == 1 and names[id(layer)] == 1 and target not in read

    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (reader,) = node.users
        plain = reader.op == "call_module" and reader.args == (node,) and not reader.kwargs
        if plain and alone(str(node.target)) and alone(str(reader.target)):
            found.append((str(node.target), str(reader.target)))
    return found


def replace(module: nn.Module, name: str, part: Any) -> None:
    """Put `part` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent)._modules[child] = part
