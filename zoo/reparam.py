"""Re-parameterisation: compute the same function with fewer operations.

A block that has a cheaper equivalent implements `fused(self)`, which returns the replacement and
does not change the block. `reparameterize` replaces blocks in a deep copy, from the leaves up. In
modules without that method, a batch norm is folded into the convolution or linear layer before it,
if nothing else reads the output of that layer. timm's blocks are fused by their own methods first.
"""

from collections import Counter
from typing import Any, TypeVar, cast

import timm.utils
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn

from zoo.blocks.folding import fold_batch_norm, is_fixed_batch_norm
from zoo.blocks.scale import LayerScale
from zoo.errors import BadInput

Model = TypeVar("Model", bound=nn.Module)

# A linear layer before a batch norm is assumed to map B C; for B N C the norm would be over N.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


def reparameterize(model: Model) -> Model:
    """Return a copy of `model` that computes the same function with fewer operations.

    Args:
        model: The model, in evaluation mode; it is not changed. A fused model is copied.

    Raises:
        BadInput: The model is in training mode, in which batch norms have no fixed statistics.
    """
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise BadInput(
            f"{training} is in training mode; call model.eval() first, so that batch norms use"
            " their running statistics"
        )
    fused = cast(
        Model, _fused(_fused_by_timm(model), {}).eval()
    )  # new modules start in training mode
    fused.__dict__["reparameterized"] = True  # read by `count` and the exporters
    return fused


def _fused_by_timm(model: nn.Module) -> nn.Module:
    """Return a copy in which timm's blocks are fused by their own methods."""
    sample = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    before = torch.get_default_dtype()
    torch.set_default_dtype(sample.dtype)  # timm creates layers in the default type
    try:
        with torch.device(sample.device):
            return timm.utils.reparameterize_model(model)
    finally:
        torch.set_default_dtype(before)


def _fused(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Return the replacement of `module`, after replacing its children in place.

    Args:
        module: Part of the copy.
        done: Replacements so far, by the `id` of the original: shared modules stay shared.
    """
    if id(module) in done:
        return done[id(module)]
    parts: dict[str, Any] = module._modules
    for name, child in parts.items():
        if child is not None:
            parts[name] = _fused(child, done)
    fuse: Any = getattr(module, "fused", None)
    if not callable(fuse):
        _fold_pairs(module)
    replacement: Any = fuse() if callable(fuse) else module
    done[id(module)] = replacement
    return replacement


def _fold_pairs(module: nn.Module) -> None:
    layers = [m for _, m in _called(module)]
    if not any(type(m) in _FOLDABLE for m in layers) or not any(map(_plain_norm, layers)):
        return
    for before, after in pairs(module):
        layer: Any = module.get_submodule(before)
        norm: Any = module.get_submodule(after)
        if _foldable(layer, norm):
            replace(module, before, fold_batch_norm(layer, _plain_norm(norm)))
            replace(module, after, _rest(norm))


def _called(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that `module` can call: its children, and those in lists of children."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += [(f"{name}.{inner}", m) for inner, m in _called(child)]
        else:
            found.append((name, child))
    return found


def _foldable(layer: Any, norm: Any) -> bool:
    """Return whether `norm` can be folded into `layer`, whose output it reads."""
    plain = _plain_norm(norm)
    if type(layer) not in _FOLDABLE or plain is None:
        return False
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, norm))
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return not hooked and plain.running_mean.numel() == channels


def _plain_norm(module: Any) -> Any:
    """Return the batch norm with fixed statistics that a module is, or starts with; else None."""
    if is_fixed_batch_norm(module):
        return module
    if type(module) is not BatchNormAct2d or module.running_mean is None:
        return None
    whole: Any = module
    norm = nn.BatchNorm2d(whole.num_features, eps=whole.eps, affine=whole.affine)
    norm = norm.to(device=whole.running_mean.device, dtype=whole.running_mean.dtype)
    norm.load_state_dict({k: v for k, v in whole.state_dict().items() if k in _NORM_KEYS})
    return norm


_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _rest(norm: nn.Module) -> nn.Module:
    """Return the part of a module after its batch norm."""
    if type(norm) is BatchNormAct2d:
        return nn.Sequential(*norm.children())  # dropout and activation
    return nn.Identity()


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


def shake(model: Model, seed: int = 0) -> Model:
    """Give all parameters and statistics of `model` random values of order one, in place.

    A model with initial weights hides mistakes: its norms do nothing and its layer scales are close
    to zero. Randomise it before comparing two forms of it.

    If many branches of order one would add up to large values, a block lists the norms at their
    ends in `branch_ends`; the weights of these norms are made smaller.

    Returns:
        The same model.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LayerScale):
                module.gamma.copy_(0.5 + 0.2 * draw(module.gamma))
                continue
            for name, tensor in [*module.named_parameters(recurse=False), *_floats(module)]:
                if name == "running_var":
                    tensor.copy_(0.5 + draw(tensor).abs() / 2)
                elif name == "weight" and tensor.ndim == 1:
                    tensor.copy_(1 + 0.1 * draw(tensor))
                elif tensor.ndim <= 1 or name in getattr(module, "no_decay", ()):
                    tensor.copy_(0.1 * draw(tensor))
                else:
                    tensor.copy_(draw(tensor) * (tensor.shape[0] / tensor.numel()) ** 0.5)
        for module in model.modules():
            for path in getattr(module, "branch_ends", ()):
                module.get_parameter(f"{path}.weight").mul_(0.3)
    return model


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the floating-point buffers that are part of the state dict."""
    constants = module._non_persistent_buffers_set
    buffers = module.named_buffers(recurse=False)
    return [(n, b) for n, b in buffers if b.is_floating_point() and n not in constants]
