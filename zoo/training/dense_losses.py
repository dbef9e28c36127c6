"""Losses of models that draw maps: for the class of every pixel, and for the pixels themselves.

For classes: logits N K H W and class numbers N H W, where 255 belongs to no class and counts for
nothing. For pixels: values N C H W and what they should be, N C H W.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.pairs import IGNORE
from zoo.errors import BadInput
from zoo.training.losses import register_loss


class PixelCrossEntropy(nn.Module):
    """Mean cross-entropy of the pixels that belong to a class; 0 where none does.

    Args:
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, numbers: Tensor) -> Tensor:
        total = F.cross_entropy(
            logits.float(),
            numbers,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / (numbers != IGNORE).sum().clamp(min=1)


class Dice(nn.Module):
    """One minus the soft Dice coefficient (V-Net, arXiv 1606.04797, section 3) of each class.

    Intersections and areas are summed over the batch; classes that do not occur in it are left out
    of the mean, since their coefficient says nothing.

    Args:
        smooth: Pixels added to intersection and area, against noise from tiny areas.
    """

    def __init__(self, smooth: float = 1.0):
        super().__init__()
        if smooth < 0:
            raise BadInput(f"train.loss_args.smooth={smooth} must be 0 or more")
        self.smooth = smooth

    def forward(self, logits: Tensor, numbers: Tensor) -> Tensor:
        counted = numbers != IGNORE
        shares = logits.float().softmax(dim=1) * counted[:, None]
        hot = F.one_hot(numbers.where(counted, 0), logits.shape[1]) * counted[..., None]
        hot = hot.movedim(-1, 1)  # N K H W
        both = (shares * hot).sum(dim=(0, 2, 3))
        areas = shares.sum(dim=(0, 2, 3)) + hot.sum(dim=(0, 2, 3))
        missing = 1 - (2 * both + self.smooth) / (areas + self.smooth)
        present = hot.sum(dim=(0, 2, 3)) > 0
        return (missing * present).sum() / present.sum().clamp(min=1)


class CrossEntropyAndDice(nn.Module):
    """Cross-entropy plus `dice_weight` times the Dice loss.

    Args:
        label_smoothing: Of the cross-entropy.
        dice_weight: Of the Dice loss.
        smooth: Of the Dice loss.
    """

    def __init__(self, label_smoothing: float = 0.0, dice_weight: float = 1.0, smooth: float = 1.0):
        super().__init__()
        if dice_weight <= 0:
            raise BadInput(f"train.loss_args.dice_weight={dice_weight} must be above 0")
        self.cross_entropy = PixelCrossEntropy(label_smoothing)
        self.dice = Dice(smooth)
        self.dice_weight = dice_weight

    def forward(self, logits: Tensor, numbers: Tensor) -> Tensor:
        return self.cross_entropy(logits, numbers) + self.dice_weight * self.dice(logits, numbers)


class Charbonnier(nn.Module):
    """Mean of sqrt(d^2 + eps^2): the absolute difference, smooth at 0 (LapSRN, arXiv 1704.03915).

    Args:
        eps: Where the curve bends, in units of the values.
    """

    def __init__(self, eps: float = 1e-3):
        super().__init__()
        if eps <= 0:
            raise BadInput(f"train.loss_args.eps={eps} must be above 0")
        self.eps = eps

    def forward(self, drawn: Tensor, targets: Tensor) -> Tensor:
        return torch.sqrt((drawn.float() - targets) ** 2 + self.eps**2).mean()


class Absolute(nn.Module):
    """Mean absolute difference."""

    def forward(self, drawn: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(drawn.float(), targets)


register_loss("cross-entropy", PixelCrossEntropy, task="segmentation")
register_loss("dice", Dice, task="segmentation")
register_loss("cross-entropy+dice", CrossEntropyAndDice, task="segmentation")
register_loss("l1", Absolute, task="super-resolution")
register_loss("charbonnier", Charbonnier, task="super-resolution")
