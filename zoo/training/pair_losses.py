"""A loss for embeddings, which pairs the images of a batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.training.checks import check_value
from zoo.training.losses import register_loss


class MultiSimilarity(nn.Module):
    """The multi-similarity loss with its choice of pairs (arXiv 1904.06627, section 4).

    Of the pairs of an image, those of another place are kept if they are more similar than its
    least similar pair of the same place, minus `margin`; and those of the same place if they are
    less similar than its most similar pair of another place, plus `margin` (equations 11 and 12).
    Equation 14 weights what is kept. An image without a pair of either kind does not count.

    Args:
        alpha: How fast the weight of pairs of the same place grows.
        beta: The same for pairs of different places.
        base: Similarity at which a pair is neither good nor bad.
        margin: Largest distance to the hardest pair.

    Raises:
        BadInput: `alpha` or `beta` is not above 0, or a value is no number.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, margin: float = 0.1
    ):
        super().__init__()
        for key, value in (("alpha", alpha), ("beta", beta)):
            check_value(f"train.loss_args.{key}", value, _is_number(value) and value > 0, "above 0")
        for key, value in (("base", base), ("margin", margin)):
            check_value(f"train.loss_args.{key}", value, _is_number(value), "a number")
        self.alpha, self.beta, self.base, self.margin = alpha, beta, base, margin

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Return the loss.

        Args:
            embeddings: Of length 1, N D.
            targets: N 2, of which the first column is the place.
        """
        embeddings, places = embeddings.float(), targets[:, 0]
        similarity = embeddings @ embeddings.T
        same = places[:, None] == places
        other, same = ~same, same & ~torch.eye(len(places), dtype=torch.bool, device=same.device)
        least = similarity.masked_fill(~same, math.inf).amin(dim=1, keepdim=True)
        most = similarity.masked_fill(~other, -math.inf).amax(dim=1, keepdim=True)
        other = other & (similarity > least - self.margin)
        same = same & (similarity < most + self.margin)
        pull = self._pooled(-self.alpha * (similarity - self.base), same) / self.alpha
        push = self._pooled(self.beta * (similarity - self.base), other) / self.beta
        return (pull + push).mean()

    def _pooled(self, exponents: Tensor, kept: Tensor) -> Tensor:
        """Return log(1 + the sum of exp over the kept pairs) for each image."""
        terms = exponents.masked_fill(~kept, -math.inf)
        return torch.cat([torch.zeros_like(terms[:, :1]), terms], dim=1).logsumexp(dim=1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


register_loss("multi-similarity", MultiSimilarity, task="retrieval")
