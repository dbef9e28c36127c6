"""Record the operators that one small model of each module of timm and torchvision executes.

A test requires a counting rule for each of them. Run this after an update of either package; it
takes some minutes, and goes on where it was stopped.
"""

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

FILE = Path(__file__).parents[1] / "tests" / "profiling" / "operators.json"
_LARGE = re.compile(
    "base|large|huge|giant|xl|_[lbh]([_0-9]|$)|384|448|512|so[0-9]+m|[0-9]{3}m|enormous|_7b|x32|101|152|b36"
)


def write() -> None:
    """Trace one model of each module and write `tests/profiling/operators.json`."""
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__.split("+")[0]}
    stored = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    found: dict[str, Any] = stored.get("modules", {}) if stored.get("versions") == versions else {}
    torch.backends.mha.set_fastpath_enabled(False)  # as `zoo.count` does
    for module, name, build in _models():
        if found.get(module, {}).get("model") == name:
            continue
        model = build().eval()
        image = torch.zeros(_input_size(module, model))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of values that become constants
            whole = _TensorsOnly(model, 2 if "optical_flow" in module else 1)
            traced: Any = torch.jit.trace(whole, image, check_trace=False)
        kinds = {node.kind() for node in _nodes(traced.inlined_graph)}
        operators = sorted(kind for kind in kinds if not kind.startswith("prim::"))
        found[module] = {"model": name, "operators": operators}
        content = json.dumps(
            {"versions": versions, "modules": dict(sorted(found.items()))}, indent=1
        )
        FILE.write_text(content + "\n", encoding="utf-8")
        print(f"{module}: {name}, {len(operators)} operators", flush=True)


class _TensorsOnly(nn.Module):
    """Returns the tensors in an output of any type, as tracing requires.

    Args:
        model: The model.
        inputs: Number of images that it takes.
    """

    def __init__(self, model: nn.Module, inputs: int) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        leaves = tree_leaves(self.model(*[x] * self.inputs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _models() -> Iterator[tuple[str, str, Callable[[], nn.Module]]]:
    """Yield the module, the name and the constructor of one small model per module."""
    for module in timm.list_modules():
        if names := timm.list_models(module=module):
            name = _smallest(names)
            yield f"timm.{module}", name, lambda name=name: timm.create_model(name)
    by_module: dict[str, list[str]] = defaultdict(list)
    for name in torchvision.models.list_models():
        by_module[torchvision.models.get_model_builder(name).__module__].append(name)
    for module, names in sorted(by_module.items()):
        name = _smallest(names)
        options = {"weights": None}
        if "detection" in module or "segmentation" in module:
            options["weights_backbone"] = None
        build = torchvision.models.get_model
        yield module, name, lambda name=name, options=options, build=build: build(name, **options)


def _smallest(names: list[str]) -> str:
    return min(names, key=lambda name: (bool(_LARGE.search(name)), len(name), name))


def _input_size(module: str, model: Any) -> tuple[int, ...]:
    if module.startswith("timm."):
        return (1, *model.pretrained_cfg["input_size"])
    if "video" in module:
        return (1, 3, 16, 224, 224)
    if "optical_flow" in module:
        return (1, 3, 128, 128)
    return (1, 3, 224, 224)


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
