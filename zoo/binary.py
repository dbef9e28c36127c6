"""Two classes from a single logit: that of the second class; the first has the logit 0."""

import torch
from torch import Tensor


def all_logits(logits: Tensor) -> Tensor:
    """Return N K H W with a logit for each class: 2 for N 1 H W, else `logits` itself."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def class_map(logits: Tensor) -> Tensor:
    """Return the class of each pixel, N H W, for N K H W; a single logit is compared with 0."""
    if logits.shape[1] > 1:
        return logits.argmax(dim=1)
    return (logits[:, 0] > 0).long()
