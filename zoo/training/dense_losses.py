"""Losses for dense prediction: segmentation and output images.

Segmentation losses take logits N K H W and class numbers N H W; pixels with the number 255 are
ignored. A single logit, K = 1, is that of the second of two classes.
Losses of images take predicted and target values, N C H W each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.binary import all_logits
from zoo.data.pairs import IGNORE
from zoo.training.checks import check_value
from zoo.training.losses import register_loss


class PixelCrossEntropy(nn.Module):
    """Mean cross-entropy of all pixels that are not ignored; 0 if all are ignored.

    Args:
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        total = F.cross_entropy(
            all_logits(logits.float()),
            targets,
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / (targets != IGNORE).sum().clamp(min=1)


class Dice(nn.Module):
    """One minus the mean soft Dice coefficient (V-Net, arXiv 1606.04797, section 3).

    Intersections and areas are summed over the batch. The mean is over the classes that occur in
    the targets of the batch.

    Args:
        smooth: Pixels added to intersection and area, which reduces the noise of tiny areas.
    """

    def __init__(self, smooth: float = 1.0):
        super().__init__()
        check_value("train.loss_args.smooth", smooth, smooth >= 0, "at least 0")
        self.smooth = smooth

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        valid, logits = targets != IGNORE, all_logits(logits.float())
        probabilities = logits.softmax(dim=1) * valid[:, None]
        one_hot = F.one_hot(targets.where(valid, 0), logits.shape[1]) * valid[..., None]
        one_hot = one_hot.movedim(-1, 1)  # N K H W
        intersections = (probabilities * one_hot).sum(dim=(0, 2, 3))
        areas = probabilities.sum(dim=(0, 2, 3)) + one_hot.sum(dim=(0, 2, 3))
        losses = 1 - (2 * intersections + self.smooth) / (areas + self.smooth)
        present = one_hot.sum(dim=(0, 2, 3)) > 0
        return (losses * present).sum() / present.sum().clamp(min=1)


class CrossEntropyAndDice(nn.Module):
    """Cross-entropy plus `dice_weight` times the Dice loss.

    Args:
        label_smoothing: Label smoothing of the cross-entropy.
        dice_weight: Weight of the Dice loss.
        smooth: Smoothing of the Dice loss, pixels.
    """

    def __init__(self, label_smoothing: float = 0.0, dice_weight: float = 1.0, smooth: float = 1.0):
        super().__init__()
        check_value("train.loss_args.dice_weight", dice_weight, dice_weight > 0, "greater than 0")
        self.cross_entropy = PixelCrossEntropy(label_smoothing)
        self.dice = Dice(smooth)
        self.dice_weight = dice_weight

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.cross_entropy(logits, targets) + self.dice_weight * self.dice(logits, targets)


class Charbonnier(nn.Module):
    """Mean of sqrt(d^2 + eps^2), a smooth absolute error (LapSRN, arXiv 1704.03915).

    Args:
        eps: Errors well below `eps` count quadratically, in units of the values.
    """

    def __init__(self, eps: float = 1e-3):
        super().__init__()
        check_value("train.loss_args.eps", eps, eps > 0, "greater than 0")
        self.eps = eps

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return torch.sqrt((predictions.float() - targets) ** 2 + self.eps**2).mean()


class OfScales(nn.Module):
    """The mean of a loss over all images that a model returns in training mode.

    MAXIM (arXiv 2201.02973, section 3.4) returns images of several sizes from each of its stages.
    Each is compared with the target at its size, whose pixels are averaged.

    Args:
        loss: The loss of one image.
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, predictions: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        images = [predictions] if isinstance(predictions, Tensor) else predictions
        wanted = (F.interpolate(targets, image.shape[2:], mode="area") for image in images)
        losses = [self.loss(y.float(), z) for y, z in zip(images, wanted, strict=True)]
        return torch.stack(losses).mean()


def _l1() -> nn.Module:
    return nn.L1Loss()


def _l1_of_scales() -> nn.Module:
    return OfScales(nn.L1Loss())


def _charbonnier_of_scales(eps: float = 1e-3) -> nn.Module:
    return OfScales(Charbonnier(eps))


register_loss("cross-entropy", PixelCrossEntropy, task="segmentation")
register_loss("dice", Dice, task="segmentation")
register_loss("cross-entropy+dice", CrossEntropyAndDice, task="segmentation")
register_loss("l1", _l1, task="super-resolution")
register_loss("charbonnier", Charbonnier, task="super-resolution")
register_loss("l1", _l1_of_scales, task="restoration")
register_loss("charbonnier", _charbonnier_of_scales, task="restoration")
