"""Re-parameterisation: scales and norms that the linear layer next to them absorbs.

A block derives from `Absorbing` and names its pairs: `absorbs_before = {"mlp": "norm2"}` where the
norm comes before the layer, `absorbs_after = {"conv": "norm"}` where it comes after. A part that is
not itself a linear layer states which layers can absorb an affine map: `input_layers` are the
linear layers that read its input, `output_parts` the parts that compute its output, in the order of
the calls.

Every function returns new modules and leaves its arguments as they were. Products are formed in
float64 and rounded once, so a chain of folds loses no precision.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Module = TypeVar("Module", bound=nn.Module)


class Absorbing(nn.Module):
    """A block that, when fused, folds scales and norms into the layers next to them.

    Attributes:
        absorbs_before: Layer -> the norm or scale whose output only this layer reads. Layers that
            share a norm absorb it together.
        absorbs_after: Layer -> the batch norm or scale that is applied to its output.
    """

    absorbs_before = {}
    absorbs_after = {}

    def fused(self) -> Any:
        """Fold every pair that can be folded."""
        return absorb(self)


def absorb(module: Any) -> Any:
    """Fold the pairs that an `Absorbing` block names; a pair that cannot be folded stays."""
    fused = module
    before, after = module.absorbs_before, module.absorbs_after
    for name in dict.fromkeys(before.values()):
        layers = {path: fused.get_submodule(path) for path in before if before[path] == name}
        rest, scale, shift = _split(getattr(fused, name))
        if scale is not None and None not in map(_input_layers, layers.values()):
            fused = rebuilt(fused, **{name: rest})
            for path, layer in layers.items():
                fused = _replaced(fused, path, affine_inputs(layer, scale, shift))
    for path, name in after.items():
        layer = fused.get_submodule(path)
        rest, scale, shift = _split(getattr(fused, name))
        if scale is not None and isinstance(rest, nn.Identity) and _output_layer(layer) is not None:
            fused = rebuilt(fused, **{name: rest})
            fused = _replaced(fused, path, scale_outputs(layer, scale, shift))
    return fused


def _split(part: Any) -> tuple[nn.Module, Tensor | None, Tensor | None]:
    """Return a norm or scale without its affine map, and the scale and shift of that map."""
    if is_fixed_batch_norm(part):
        return nn.Identity(), *batch_norm_affine(part)
    if isinstance(part, nn.LayerNorm | nn.GroupNorm) and part.weight is not None:
        return split_affine(part)
    factors: Any = getattr(part, "factors", None)
    return (part, None, None) if factors is None else (nn.Identity(), factors(), None)


def scale_queries(attention: Module, layer: str, width: int, groups: int = 1) -> Module:
    """Fold `attention.scale` into the layer that computes the queries, once that layer is fused.

    Args:
        attention: Module that multiplies the products of queries and keys by its `scale`.
        layer: Name of the part that computes the queries.
        width: Number of queries, which are the first outputs of each group.
        groups: Number of groups of equal size in the outputs.
    """
    part: Any = getattr(attention, layer)
    scale: Any = attention.scale
    path = _output_layer(part)
    if scale == 1.0 or path is None:
        return attention
    weight: Any = part.get_submodule(path).weight
    factors = weight.new_ones(groups, len(weight) // groups, dtype=torch.float64)
    factors[:, :width] = scale
    fused: Any = rebuilt(attention, **{layer: scale_outputs(part, factors.flatten())})
    fused.scale = 1.0
    return fused


def _output_layer(module: Any) -> str | None:
    """Return the path of the linear layer that computes the output; `""` is the module itself."""
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
        return ""
    parts = [name for name in getattr(module, "output_parts", ()) if not _is_identity(module, name)]
    inner = _output_layer(module.get_submodule(parts[-1])) if parts else None
    return None if inner is None else f"{parts[-1]}.{inner}".rstrip(".")


def _is_identity(module: nn.Module, name: str) -> bool:
    return isinstance(module.get_submodule(name), nn.Identity)


def _input_layers(module: Any) -> list[str] | None:
    """Return the paths of the linear layers that read the input; None if a layer pads it."""
    if isinstance(module, nn.Linear):
        return [""]
    if isinstance(module, _CONVOLUTIONS):
        return [""] if module.groups == 1 and not any(module.padding) else None
    found = []
    for name in getattr(module, "input_layers", ()):
        inner = _input_layers(module.get_submodule(name))
        if inner is None:
            return None
        found += [f"{name}.{path}".rstrip(".") for path in inner]
    return found or None


def _replaced(module: Any, path: str, layer: nn.Module) -> Any:
    """Return a copy of `module` with another layer at `path`."""
    if not path:
        return layer
    name, _, rest = path.partition(".")
    return rebuilt(module, **{name: _replaced(getattr(module, name), rest, layer)})


def rebuilt(module: Module, **changes: nn.Module | Tensor | None) -> Module:
    """Return a shallow copy of `module` with other children or parameters of these names."""
    copied = copy.copy(module)
    for store in ("_modules", "_parameters", "_buffers"):
        copied.__dict__[store] = dict(getattr(module, store))
    for name, value in changes.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value)
        setattr(copied, name, value)
    return copied


def without_parametrizations(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Give a module its class from before PyTorch's parametrizations, with these parameters.

    PyTorch's own function removes a property from a class that copies of the module share.

    Args:
        module: Changed in place.
        values: The parameters in the place of all that were parametrized.
    """
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    module.__dict__.pop("__deepcopy__", None)
    parameters = {name: nn.Parameter(value) for name, value in values.items()}
    module._parameters = parameters | module._parameters


def is_fixed_batch_norm(module: nn.Module | None) -> bool:
    """Return whether `module` is a batch norm with running statistics and nothing else.

    Synchronised and frozen batch norms count; subclasses that add an activation do not.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    return type(module) in kinds and getattr(module, "running_mean", None) is not None


def batch_norm_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (float64, one per channel) of a batch norm with fixed statistics."""
    assert is_fixed_batch_norm(norm), norm
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.detach(), shift.detach()


def scale_outputs(module: Module, scale: Tensor, shift: Tensor | None = None) -> Module:
    """Return a module that computes `scale * module(x) + shift`.

    Args:
        module: A linear layer, a convolution, or a module with `output_parts`.
        scale: One factor per output channel, or one for all.
        shift: One summand per output channel, or None.
    """
    path = _output_layer(module)
    assert path is not None, f"no layer of {type(module).__name__} can be scaled"
    layer: Any = module.get_submodule(path)
    weight, scale = layer.weight.detach(), scale.detach().double()
    bias = None
    if layer.bias is not None:
        bias = layer.bias.detach().double() * scale
    if shift is not None:
        bias = shift.detach().double() + (0 if bias is None else bias)
    scaled = rebuilt(
        layer,
        weight=(weight.double() * _along_outputs(layer, scale)).to(weight.dtype),
        bias=None if bias is None else bias.to(weight.dtype),
    )
    return _replaced(module, path, scaled)


def _along_outputs(layer: nn.Module, values: Tensor) -> Tensor:
    """Reshape values, one per output channel, to multiply the weight of `layer`."""
    weight: Any = layer.weight
    if not isinstance(layer, _TRANSPOSED):
        return values.reshape(-1, *[1] * (weight.ndim - 1))
    # in x out / groups: an input channel is connected to the output channels of its group
    rows = values.reshape(layer.groups, -1).repeat_interleave(len(weight) // layer.groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def affine_inputs(module: Module, scale: Tensor, shift: Tensor | None = None) -> Module:
    """Return a module that computes `module(scale * x + shift)`.

    Args:
        module: A linear layer, a convolution of one group without padding, or a module with
            `input_layers`.
        scale: One factor per input channel, or one per value that an output reads.
        shift: The same number of summands, or None.
    """
    paths = _input_layers(module)
    assert paths is not None, f"no layer of {type(module).__name__} can absorb an affine map"
    for path in paths:
        layer: Any = module.get_submodule(path)
        weight: Any = layer.weight.detach().double()
        factors = _along_inputs(weight, scale)
        bias = None if layer.bias is None else layer.bias.detach().double()
        if shift is not None:
            added = (weight * _along_inputs(weight, shift)).flatten(1).sum(1)
            bias = added if bias is None else bias + added
        dtype = layer.weight.dtype
        fed = rebuilt(
            layer,
            weight=(weight * factors).to(dtype),
            bias=None if bias is None else bias.to(dtype),
        )
        module = _replaced(module, path, fed)
    return module


def _along_inputs(weight: Tensor, values: Tensor) -> Tensor:
    """Reshape values, one per input channel or one per column, to multiply `weight`."""
    values = values.detach().double()
    if values.numel() == weight[0].numel():
        return values.view(weight.shape[1:])
    return values.reshape(-1, *[1] * (weight.ndim - 2))


def merge_pointwise(layer: nn.ConvTranspose2d, pointwise: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the transposed convolution that computes `pointwise(layer(x))`.

    Args:
        layer: A transposed convolution of one group.
        pointwise: A 1x1 convolution of one group.
    """
    assert layer.groups == pointwise.groups == 1
    assert pointwise.kernel_size == pointwise.stride == (1, 1)
    mix = pointwise.weight.detach().double().flatten(1)  # out x middle
    bias = torch.zeros(len(mix), dtype=mix.dtype, device=mix.device)
    if layer.bias is not None:
        bias = mix @ layer.bias.detach().double()
    if pointwise.bias is not None:
        bias = bias + pointwise.bias.detach().double()
    weight, dtype = layer.weight.detach().double(), layer.weight.dtype
    mixed = torch.einsum("imhw,om->iohw", weight, mix).to(dtype)
    # ExecuTorch refuses weights that are not contiguous.
    merged = rebuilt(layer, weight=mixed.contiguous(), bias=bias.to(dtype))
    merged.out_channels = pointwise.out_channels
    return merged


def fold_batch_norm(layer: Module, norm: nn.Module) -> Module:
    """Fold the batch norm that follows a linear layer or convolution into it."""
    return scale_outputs(layer, *batch_norm_affine(norm))


def split_affine(
    norm: nn.LayerNorm | nn.GroupNorm,
) -> tuple[nn.LayerNorm | nn.GroupNorm, Tensor, Tensor]:
    """Split a layer or group norm into one without an affine part, its scale and its shift."""
    plain = rebuilt(norm, weight=None, bias=None)
    setattr(plain, "affine" if isinstance(norm, nn.GroupNorm) else "elementwise_affine", False)
    return plain, norm.weight, norm.bias


def add_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """Absorb `x + conv(x)` into a convolution that keeps size and channels."""
    kernel = conv.weight.detach().double().clone()
    inputs = kernel.shape[1]  # channels of one group
    middle = [side // 2 for side in kernel.shape[2:]]
    for channel in range(kernel.shape[0]):
        kernel[(channel, channel % inputs, *middle)] += 1
    return rebuilt(conv, weight=kernel.to(conv.weight.dtype))


def mean_of(layers: list[nn.Linear]) -> nn.Linear:
    """Return the linear layer that computes the mean of several on the same input."""
    weight = torch.stack([layer.weight.detach().double() for layer in layers]).mean(0)
    bias = torch.stack([layer.bias.detach().double() for layer in layers]).mean(0)
    dtype = layers[0].weight.dtype
    return rebuilt(layers[0], weight=weight.to(dtype), bias=bias.to(dtype))
