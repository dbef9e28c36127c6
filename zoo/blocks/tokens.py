"""Tokens and feature maps: the same values, as a sequence or on a grid."""

import torch
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    """B C H W -> B N C, positions row by row; a view."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """B N C -> B C H W, a view of the last H * W tokens; a map is returned unchanged.

    Tokens before the positions, such as a class token, are dropped.
    """
    if x.ndim == 4:
        return x
    return x[:, x.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))


torch.fx.wrap("to_map")  # a leaf for symbolic tracing: it looks at the number of axes


def to_row(x: Tensor) -> Tensor:
    """B N C -> B C 1 N: tokens as a map of one row, a view; a map is returned unchanged."""
    return x if x.ndim == 4 else x.transpose(1, 2).unsqueeze(2)


torch.fx.wrap("to_row")


class ClassToken(nn.Module):
    """Put a learnt token in front of the others (BERT's, ViT's: arXiv 2010.11929, eq. 1).

    Args:
        channels: Width of the tokens.
        std: Spread of the initial values.
    """

    no_decay = ("token",)

    def __init__(self, channels: int, *, std: float = 0.02):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        if std:
            nn.init.trunc_normal_(self.token, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """B N C -> B 1+N C."""
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
