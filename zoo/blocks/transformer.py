"""The transformer block: attention among tokens, then a perceptron on each.

Tokens are B N C, or B H W C where a part needs to know the grid. A part that offers
`after_affine(scale, shift)`, a copy that computes the same from x as it does from
`scale * x + shift`, absorbs the affine part of the norm in front of it when the block is fused.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.drop import DropPath
from zoo.blocks.folding import affine_inputs, rebuilt, scale_outputs, split_affine


# B batch, N queries, M keys, H heads, D features of a head, C = H * D
def attend(
    q_BNC: Tensor, k_BMC: Tensor, v_BMC: Tensor, num_heads: int, scale: float, drop: float = 0.0
) -> Tensor:
    """Multi-head attention, heads side by side in C: softmax(scale * q k^T) v -> B N C.

    Args:
        q_BNC: Queries.
        k_BMC: Keys.
        v_BMC: Values; their width may be another.
        num_heads: Number of heads.
        scale: Factor of the products.
        drop: Probability of leaving out a weight.
    """
    q_BHND = q_BNC.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    k_BHMD = k_BMC.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    v_BHMD = v_BMC.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    y_BHND = F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, dropout_p=drop, scale=scale)
    return y_BHND.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2.2) over B N C or B H W C.

    Outputs of `qkv` are all queries, all keys, all values; each head by head.

    Args:
        channels: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of heads.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of attention weights while training.
    """

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
        return self.proj(y_BNC).view(x.shape)

    def after_affine(self, scale: Tensor, shift: Tensor) -> "SelfAttention":
        """Return attention that computes from x what this one does from `scale * x + shift`."""
        return rebuilt(self, qkv=affine_inputs(self.qkv, scale, shift))

    def scaled(self, scale: Tensor) -> "SelfAttention":
        """Return attention that computes `scale * y`."""
        return rebuilt(self, proj=scale_outputs(self.proj, scale))

    def fused(self) -> "SelfAttention":
        """The scale of the products in the queries."""
        if self.scale == 1.0:
            return self
        factors = torch.ones(self.qkv.out_features, dtype=torch.float64)
        factors[: self.qkv.out_features // 3] = self.scale
        fused = rebuilt(self, qkv=scale_outputs(self.qkv, factors.to(self.qkv.weight.device)))
        fused.scale = 1.0
        return fused


class CrossAttention(nn.Module):
    """Multi-head attention whose queries come from one row of tokens, keys and values from another.

    Outputs of `kv` are all keys, all values; each head by head.

    Args:
        channels: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of heads.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """B N C that ask, B M C that answer -> B N C."""
        k_BMC, v_BMC = self.kv(context).chunk(2, dim=-1)
        return self.proj(attend(self.q(x), k_BMC, v_BMC, self.num_heads, self.scale))

    def after_affine(self, scale: Tensor, shift: Tensor) -> "CrossAttention":
        """Return attention that computes from both rows what this one does from affine ones."""
        q, kv = (affine_inputs(layer, scale, shift) for layer in (self.q, self.kv))
        return rebuilt(self, q=q, kv=kv)

    def fused(self) -> "CrossAttention":
        """The scale of the products in the queries."""
        if self.scale == 1.0:
            return self
        factors = self.q.weight.new_full((self.q.out_features,), self.scale, dtype=torch.float64)
        fused = rebuilt(self, q=scale_outputs(self.q, factors))
        fused.scale = 1.0
        return fused


class SplitSelfAttention(CrossAttention):
    """Self-attention with layers of their own for the queries; B N C or B H W C."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        tokens = x.flatten(1, -2)
        k_BNC, v_BNC = self.kv(tokens).chunk(2, dim=-1)
        y_BNC = attend(self.q(tokens), k_BNC, v_BNC, self.num_heads, self.scale)
        return self.proj(y_BNC).view(x.shape)


class TransformerBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) (pre-norm; arXiv 2010.11929, eq. 2 and 3).

    Args:
        channels: Width of the tokens.
        mixer: Attention, or what else mixes tokens.
        mlp: What works on each token.
        drop_path: Probability of leaving a branch out while training.
        eps: Of the norms.
        maps: The input is B C H W, and the parts are given B H W C (views of it); otherwise B N C.
    """

    # Norms, and the parts that read nothing but their output.
    absorbing: ClassVar[tuple[tuple[str, str], ...]] = (("norm1", "mixer"), ("norm2", "mlp"))

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
            x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2) if self.maps else x

    def fused(self) -> "TransformerBlock":
        """The norms' affine parts in the parts after them that can take them."""
        fused = self
        for norm_name, part_name in self.absorbing:
            norm: Any = getattr(self, norm_name)
            part: Any = getattr(self, part_name)
            if norm.weight is not None and hasattr(part, "after_affine"):
                plain, *affine = split_affine(norm)
                fused = rebuilt(fused, **{norm_name: plain, part_name: part.after_affine(*affine)})
        return fused
