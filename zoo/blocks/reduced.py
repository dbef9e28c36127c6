"""Attention to a smaller feature map (PVT, arXiv 2102.12122)."""

from torch import Tensor, nn

from zoo.blocks.folding import Absorbing
from zoo.blocks.tokens import to_tokens
from zoo.blocks.transformer import CrossAttention


class ReducedAttention(Absorbing):
    """Attention to a feature map reduced by patches (SRA, eq. 1 to 3), on B H W C.

    Args:
        channels: Channels of input and output.
        num_heads: Number of heads.
        reduction: Side of the patches.
    """

    input_layers, output_parts = ("reduce", "attention.q"), ("attention",)
    absorbs_before = {"attention.kv": "norm"}

    def __init__(self, channels: int, num_heads: int, reduction: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
        self.norm = nn.LayerNorm(channels)
        self.attention = CrossAttention(channels, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        context_BMC = self.norm(to_tokens(self.reduce(x.permute(0, 3, 1, 2))))
        return self.attention(x.flatten(1, 2), context_BMC).view(x.shape)  # B H W C
