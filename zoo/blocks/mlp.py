"""The two-layer perceptron of a transformer block, on tokens and on maps."""

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm


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
