"""Tokens and feature maps: the same values, as a sequence or on a grid."""

import torch
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """Return a view of B C H W as tokens B N C, row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """Return a view of the last H * W tokens of B N C as B C H W; keep a feature map unchanged.

    Tokens before the positions, such as a class token, are dropped.
    """
    if x.ndim == 4:
        return x
    return x[:, x.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))


torch.fx.wrap("to_map")  # a leaf for symbolic tracing, because it reads the number of axes


def to_row(x: Tensor) -> Tensor:
    """Return a view of tokens B N C as one row, B C 1 N; keep a feature map unchanged."""
    return x if x.ndim == 4 else x.transpose(1, 2).unsqueeze(2)


torch.fx.wrap("to_row")


class ClassToken(nn.Module):
    """Put a learnt token in front of the others (BERT's, ViT's: arXiv 2010.11929, eq. 1).

    Args:
        channels: Width of the tokens.
        std: Standard deviation of the initial values.
    """

    no_decay = ("token",)

    def __init__(self, channels: int, *, std: float = 0.02):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        if std:
            nn.init.trunc_normal_(self.token, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """Convert B N C to B 1+N C."""
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
