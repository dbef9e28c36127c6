"""The two-layer perceptron of a transformer block, on tokens and on feature maps."""

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.widths import Group, hidden_channels


class Mlp(nn.Module):
    """Linear, an activation, linear, on the last axis.

    Args:
        channels: Width of input and output.
        hidden: Hidden width.
        act: Class of the activation.
    """

    input_layers, output_parts = ("fc1",), ("fc2",)

    def __init__(self, channels: int, hidden: int, *, act: type[nn.Module] = nn.GELU):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = act()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # ... C

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("fc1",), read=("fc2",))]


class MixFFN(nn.Module):
    """Linear, a 3x3 depthwise convolution, GELU, linear, on B H W C (PVT v2, arXiv 2106.13797).

    Args:
        channels: Width of input and output.
        hidden: Hidden width.
    """

    input_layers, output_parts = ("fc1",), ("fc2",)

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))  # B H W C

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("fc1", "depthwise"), read=("fc2",))]


class ConvMlp(nn.Module):
    """Two 1x1 convolutions, each with a batch norm, and an activation between them.

    Args:
        channels: Width of input and output.
        hidden: Hidden width.
        act: Class of the activation.
        bias: Whether the convolutions have biases.
    """

    output_parts = ("fc2",)

    def __init__(
        self, channels: int, hidden: int, *, act: type[nn.Module] = nn.ReLU, bias: bool = False
    ):
        super().__init__()
        self.fc1 = ConvNorm(channels, hidden, bias=bias, act=act)
        self.fc2 = ConvNorm(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))  # B C H W

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("fc1",), read=("fc2.conv",))]
