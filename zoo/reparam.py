"""Re-parameterisation: the same function with fewer operations, by one protocol.

A block that has a cheaper equal form implements `fused(self)`, which returns the replacement and
leaves the block as it was. `reparameterize` walks a deep copy from the leaves up and puts the
replacements in; in an `nn.Sequential`, batch norms are folded into the convolution or linear layer
right before them, whoever wrote it.
"""

import copy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from zoo.blocks.folding import fold_batch_norm, is_fixed_batch_norm
from zoo.blocks.scale import LayerScale
from zoo.errors import BadInput
from zoo.profiling.count import count

Model = TypeVar("Model", bound=nn.Module)

# A linear layer is taken to work on B C, as the norm after it does; on B N C the norm is over N.
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def reparameterize(model: Model) -> Model:
    """Return a copy of `model` that computes the same in evaluation with fewer operations.

    `model` stays as it was. A model that is fused already comes back as an equal copy.

    Raises:
        BadInput: The model is in train mode: batch norms fold only with fixed statistics.
    """
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise BadInput(
            f"{training} is in train mode; call model.eval() first: batch norms fold only with "
            "their running statistics"
        )
    fused = cast(Model, _fused(copy.deepcopy(model), {}).eval())  # new parts start in train mode
    fused.__dict__["reparameterized"] = True  # what `count` calls fused
    return fused


def _fused(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Replace the parts of `module` (a copy), then `module` itself; shared parts stay shared."""
    if id(module) in done:
        return done[id(module)]
    parts: dict[str, Any] = module._modules
    for name, child in parts.items():
        if child is not None:
            parts[name] = _fused(child, done)
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        _fold_pairs(module)
    fuse: Any = getattr(module, "fused", None)
    replacement: Any = fuse() if callable(fuse) else module
    done[id(module)] = replacement
    return replacement


def _fold_pairs(sequence: nn.Sequential) -> None:
    names: list[str] = list(sequence._modules)
    for before, after in zip(names, names[1:], strict=False):
        layer: Any = sequence._modules[before]
        norm: Any = sequence._modules[after]
        if _foldable(layer, norm):
            sequence._modules[before] = fold_batch_norm(layer, norm)
            sequence._modules[after] = nn.Identity()


def _foldable(layer: Any, norm: Any) -> bool:
    """Say whether `norm` reads just what `layer` writes and can be folded into it."""
    if type(layer) not in _FOLDABLE or not is_fixed_batch_norm(norm):
        return False
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, norm))
    return not hooked and norm.running_mean.numel() == layer.weight.shape[0]


def shake(model: Model, seed: int = 0) -> Model:
    """Give the statistics, scales and tables of `model` random values of order one, in place.

    Fresh models hide mistakes: their norms do nothing, their layer scales are next to zero. A
    comparison of two forms means something only on a model that has been shaken.
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
    return model


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, b) for n, b in module.named_buffers(recurse=False) if b.is_floating_point()]


@dataclass(frozen=True)
class FuseReport:
    """What fusing did: values before and after, and the largest error on shaken weights.

    Attributes:
        layers: Modules without children.
        params: Parameters.
        macs: Multiply-accumulates of one image.
        flops: FLOPs of one image.
        error: Largest difference of the outputs in float64, relative to their spread.
    """

    layers: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]
    flops: tuple[int, int]
    error: float

    def __str__(self) -> str:
        rows = [
            f"{name:<7}{before:>16,}{after:>16,}"
            for name, (before, after) in (
                ("layers", self.layers),
                ("params", self.params),
                ("MACs", self.macs),
                ("FLOPs", self.flops),
            )
        ]
        head = f"{'':<7}{'unfused':>16}{'fused':>16}"
        return "\n".join(
            [head, *rows, f"largest relative error on shaken weights {self.error:.1e}"]
        )


def report(
    before: nn.Module, after: nn.Module, input_size: tuple[int, ...] = (2, 3, 224, 224)
) -> FuseReport:
    """Compare a model with its fused form.

    Args:
        before: The model as it was, in evaluation mode.
        after: What `reparameterize` made of it.
        input_size: Shape of the images to compare on, at least two of them.

    Raises:
        BadInput: The outputs do not depend on the image, so that comparing them shows nothing.
    """
    shaken = shake(copy.deepcopy(before).double().cpu())
    images = torch.randn(input_size, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        want, have = shaken(images), reparameterize(shaken)(images)
    spread = (want[0] - want[1]).abs().mean().item()
    if not spread > 1e-6 * want.abs().max().item():
        raise BadInput(f"the outputs of {type(before).__name__} do not depend on the image")
    one = (1, *input_size[1:])
    counts = count(before, one), count(after, one)

    def leaves(model: nn.Module) -> int:
        return sum(
            not list(m.children()) and not isinstance(m, nn.Identity) for m in model.modules()
        )

    return FuseReport(
        layers=(leaves(before), leaves(after)),
        params=(counts[0].params, counts[1].params),
        macs=(counts[0].macs, counts[1].macs),
        flops=(counts[0].flops, counts[1].flops),
        error=(want - have).abs().max().item() / spread,
    )
