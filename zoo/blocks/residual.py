"""The residual connection as a module."""

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.folding import add_identity, rebuilt


class Residual(nn.Module):
    """Add the output of a branch to its input: x + m(x).

    Args:
        inner: The branch m, which keeps the shape.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # as x

    def fused(self) -> nn.Module:
        """Fold the sum into the centre of the kernel if the branch is one linear convolution."""
        branch = self.inner
        if not isinstance(branch, ConvNorm) or branch.conv.stride != (1, 1):
            return self
        if not isinstance(branch.norm, nn.Identity) or not isinstance(branch.act, nn.Identity):
            return self
        return rebuilt(branch, conv=add_identity(branch.conv))
