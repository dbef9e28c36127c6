"""A net for int8 and images for it, small enough that a test says all of both."""

import numpy as np
import torch
from torch import nn

SIZE = (1, 3, 16, 20)
WIDE = 300.0  # the first output channel of `head` over the others


class Block(nn.Module):
    """A depthwise convolution, and a ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        return nn.functional.relu6(self.depthwise(x))


class Mixed(nn.Module):
    """Layers of each kind, what lies between them, and channels of very different size.

    With one scale for all of its channels, `head` would lose all but its first.
    """

    num_classes, in_chans = 5, 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = Block()
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.mix = nn.Conv2d(6, 8, 2, stride=2, bias=False)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.head.weight[0] *= WIDE
        self.even = nn.Parameter(torch.tensor([1 / WIDE] + [1.0] * 4))

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.block(x)
        x = x + nn.functional.silu(self.mix(self.up(x)))
        tokens = x.flatten(2).mT
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + (q @ k.mT).softmax(dim=-1) @ v
        return self.head(tokens.mean(1)) * self.even


LAYERS = ("stem", "block.depthwise", "up", "mix", "qkv", "head")


def pictures(count: int, size=SIZE, *, seed: int = 0) -> np.ndarray:
    """Return images that differ in colour, N C H W."""
    generator = np.random.default_rng(seed)
    colour = 2 * generator.standard_normal((count, size[1], *[1] * (len(size) - 2)))
    return (colour + generator.standard_normal((count, *size[1:]))).astype(np.float32)


def weight_of(model: nn.Module, name: str) -> np.ndarray:
    """Return the weight of a layer, output channels first."""
    layer = model.get_submodule(name)
    weight: np.ndarray = layer.weight.detach().numpy()  # type: ignore[union-attr,operator]
    return weight.swapaxes(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def is_near(weight: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> bool:
    """Say whether int8 with a scale for each output channel stands for a weight.

    It may lie there with its channels exchanged, or with groups as an axis of their own.
    """
    if integers.shape == weight.swapaxes(0, 1).shape != weight.shape:
        integers = integers.swapaxes(0, 1)
    if integers.size != weight.size or scales.size != len(weight):
        return False
    scales = scales.reshape(-1, *[1] * (weight.ndim - 1))
    return bool((np.abs(integers.reshape(weight.shape) * scales - weight) <= 0.51 * scales).all())


def correlation(have: np.ndarray, want: np.ndarray) -> float:
    """Return how outputs go together over the images, each about its own mean."""
    a, b = (y - y.mean(axis=0) for y in (have, want))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
