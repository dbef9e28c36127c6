"""Squeeze and excitation."""

from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Weight each channel by a gate on the means of all channels (arXiv 1709.01507, eq. 2 to 4).

    Args:
        channels: Channels of input and output.
        hidden: Hidden width of the gate.
        act: Class of the activation between the two layers of the gate.
        gate: Class of the activation after the last layer.
        bias: Whether both layers have a bias.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        act: type[nn.Module] = nn.ReLU,
        gate: type[nn.Module] = nn.Sigmoid,
        bias: bool = True,
    ):
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = act()
        self.expand = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))  # B C 1 1
        return x * self.gate(gate)  # B C H W
