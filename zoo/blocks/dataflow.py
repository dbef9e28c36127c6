"""Which layer reads only the output of which other one, found by tracing their module."""

from collections import Counter
from typing import Any

from torch import fx, nn


class _Leaves(fx.Tracer):
    """Records a call of each inner module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the pairs of layers of which only the second reads the output of the first.

    Layers have the names that `module` gives them, such as `blocks.0`. Both are called once, by
    `module` itself. A module whose control flow depends on values cannot be traced: no pairs.
    """
    try:
        graph = _Leaves().trace(module)
    except Exception:  # a forward that is given a proxy may raise anything
        return []
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # A layer with two names, or whose tensors are also read outside its call, has other readers.
    names = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def called_once(target: str) -> bool:
        layer = module.get_submodule(target)
        return calls[target] == 1 and names[id(layer)] == 1 and target not in read

    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (reader,) = node.users
        plain = reader.op == "call_module" and reader.args == (node,) and not reader.kwargs
        if plain and called_once(str(node.target)) and called_once(str(reader.target)):
            found.append((str(node.target), str(reader.target)))
    return found


def replace(module: nn.Module, name: str, part: Any) -> None:
    """Replace the submodule called `name` by `part`."""
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent)._modules[child] = part
