"""The two-layer perceptron of a transformer block, on tokens and on maps."""

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.folding import affine_inputs, rebuilt, scale_outputs


class Mlp(nn.Module):
    """Linear, GELU, linear, on the last axis.

    Args:
        channels: Width of input and output.
        hidden: Width between.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))

    def after_affine(self, scale: Tensor, shift: Tensor) -> "Mlp":
        """Return an MLP that computes from x what this one does from `scale * x + shift`."""
        return rebuilt(self, fc1=affine_inputs(self.fc1, scale, shift))

    def scaled(self, scale: Tensor) -> "Mlp":
        """Return an MLP that computes `scale * y`."""
        return rebuilt(self, fc2=scale_outputs(self.fc2, scale))


class FilteredMlp(nn.Module):
    """Linear, a 3x3 filter for each channel, GELU, linear, on B H W C (PVT v2, arXiv 2106.13797).

    Args:
        channels: Width of input and output.
        hidden: Width between.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.filter = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filter(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))

    def after_affine(self, scale: Tensor, shift: Tensor) -> "FilteredMlp":
        """Return an MLP that computes from x what this one does from `scale * x + shift`."""
        return rebuilt(self, fc1=affine_inputs(self.fc1, scale, shift))


class ConvMlp(nn.Module):
    """The same on maps, with 1x1 convolutions that have a bias and a batch norm each.

    Args:
        channels: Width of input and output.
        hidden: Width between.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden, bias=True, act=nn.GELU)
        self.fc2 = ConvNorm(hidden, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))
