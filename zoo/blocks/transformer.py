"""The transformer block: attention among tokens, then a perceptron on each token.

Tokens are B N C, or B H W C where a part needs to know the grid.
"""

from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.blocks.folding import Absorbing, scale_queries
from zoo.blocks.widths import Group, Slice, positions, rows


# B batch, N queries, M keys, H heads, D features of a head, C = H * D
def attend(
    q_BNC: Tensor, k_BMC: Tensor, v_BMC: Tensor, num_heads: int, scale: float, drop: float = 0.0
) -> Tensor:
    """Multi-head attention, heads next to each other in C: softmax(scale * q k^T) v -> B N C.

    Args:
        q_BNC: Queries.
        k_BMC: Keys.
        v_BMC: Values; their width may differ.
        num_heads: Number of heads.
        scale: Factor of the products.
        drop: Probability of dropping an attention weight.
    """
    q_BHND = q_BNC.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k_BHMD = k_BMC.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    v_BHMD = v_BMC.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    y_BHND = F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, dropout_p=drop, scale=scale)
    return y_BHND.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2.2) over B N C or B H W C.

    The outputs of `qkv` are all queries, then all keys, then all values, each ordered by head.

    Args:
        channels: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of heads.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of attention weights while training.
    """

    input_layers, output_parts = ("qkv",), ("proj",)

    def __init__(
        self, channels: int, num_heads: int, *, qkv_bias: bool = True, attn_drop: float = 0.0
    ):
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.scale = (channels // num_heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q_BNC, k_BNC, v_BNC = self.qkv(x.flatten(1, -2)).chunk(3, dim=-1)
        drop = self.attn_drop if self.training else 0.0
        y_BNC = attend(q_BNC, k_BNC, v_BNC, self.num_heads, self.scale, drop)
        return self.proj(y_BNC).view(x.shape)  # as x

    def fused(self) -> "SelfAttention":
        """Fold the scale of the products into the queries."""
        return scale_queries(self, "qkv", self.qkv.out_features // 3)

    def prunable(self) -> list[Group]:
        """Declare the heads."""
        return [_heads(self, self.num_heads, {"qkv": 3})]

    def resize(self, name: str, width: int) -> None:
        """Note the number of heads."""
        self.num_heads = width


def _heads(attention: nn.Module, num_heads: int, made: dict[str, int]) -> Group:
    """Declare the heads of an attention.

    Args:
        attention: Has a linear layer `proj` that reads the heads.
        num_heads: Number of heads.
        made: Layers that compute queries, keys and values, and how many of them.
    """
    proj: Any = attention.get_submodule("proj")
    size = proj.in_features // num_heads
    slices = [
        part
        for path, parts in made.items()
        for part in rows(attention.get_submodule(path), path, (positions(parts, num_heads, size),))
    ]
    slices.append(Slice("proj.weight", 1, (positions(1, num_heads, size),), reads=True))
    return Group("heads", num_heads, tuple(slices))


class CrossAttention(nn.Module):
    """Multi-head attention: queries from one sequence of tokens, keys and values from another.

    The outputs of `kv` are all keys, then all values, each ordered by head.

    Args:
        channels: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of heads.
    """

    input_layers, output_parts = ("q", "kv"), ("proj",)

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend with queries from `x`, B N C, to keys and values from `context`, B M C."""
        k_BMC, v_BMC = self.kv(context).chunk(2, dim=-1)
        return self.proj(attend(self.q(x), k_BMC, v_BMC, self.num_heads, self.scale))

    def fused(self) -> "CrossAttention":
        """Fold the scale of the products into the queries."""
        return scale_queries(self, "q", self.q.out_features)

    def prunable(self) -> list[Group]:
        """Declare the heads."""
        return [_heads(self, self.num_heads, {"q": 1, "kv": 2})]

    def resize(self, name: str, width: int) -> None:
        """Note the number of heads."""
        self.num_heads = width


class SeparateQKVAttention(CrossAttention):
    """Self-attention, one layer for queries and one for keys and values; B N C or B H W C."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        tokens = x.flatten(1, -2)
        k_BNC, v_BNC = self.kv(tokens).chunk(2, dim=-1)
        y_BNC = attend(self.q(tokens), k_BNC, v_BNC, self.num_heads, self.scale)
        return self.proj(y_BNC).view(x.shape)  # as x


class TransformerBlock(Absorbing):
    """x + mixer(norm(x)), then x + mlp(norm(x)) (pre-norm; arXiv 2010.11929, eq. 2 and 3).

    Args:
        channels: Width of the tokens.
        mixer: Attention or another module that mixes tokens.
        mlp: Applied to each token.
        drop_path: Probability of dropping a branch in training.
        eps: Epsilon of the norms.
        maps: Whether the input is B C H W, which the parts read as B H W C; otherwise it is B N C.
    """

    absorbs_before = {"mixer": "norm1", "mlp": "norm2"}
    droppable = True

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        mlp: nn.Module,
        *,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        maps: bool = False,
    ):
        super().__init__()
        self.maps = maps
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.maps:
            x = x.permute(0, 2, 3, 1)  # B H W C
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2) if self.maps else x  # as the input
