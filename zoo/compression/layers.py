"""Which modules of a model are brought to int8: those that convolve, and linear ones."""

from collections.abc import Collection, Iterable

from torch import nn

from zoo.errors import BadInput

KINDS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that are quantised, by name, in the order in which the model has them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """Raise `BadInput` unless each name is that of a module of `model` with layers in it."""
    known = layers(model)
    for name in names:
        if not any(within(layer, [name]) for layer in known):
            raise BadInput(
                f"keep_float: {name!r} is no convolution or linear layer of the fused model, nor "
                f"a module with some in it; its layers are called like {next(iter(known), None)!r}"
            )


def within(layer: str, names: Collection[str]) -> bool:
    """Say whether a layer is one of `names`, or inside one of them."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def channel_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight along which its output channels lie."""
    return 1 if isinstance(layer, TRANSPOSED) else 0
