"""Mixup and CutMix of a batch with timm, for any number of images."""

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F


class Mixing:
    """Mixes images and converts their classes to distributions.

    Args:
        num_classes: Number of classes.
        mixup: As in `TrainConfig`.
        cutmix: As in `TrainConfig`.
        prob: Probability of mixing a batch, `train.mixup_prob`.
        switch_prob: Probability of CutMix instead of mixup, `train.mixup_switch_prob`.
        label_smoothing: As in `TrainConfig`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float,
        cutmix: float,
        prob: float,
        switch_prob: float,
        label_smoothing: float,
    ):
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=prob,
            switch_prob=switch_prob,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def disable(self) -> None:
        """Stop mixing images; classes are still converted to distributions."""
        self.mixup.mixup_enabled = False

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: N C H W; changed in place.
            targets: Class numbers, N.

        Returns:
            The images, and a distribution for each, N K.
        """
        even = len(images) // 2 * 2  # timm mixes pairs; the last of an odd number is not mixed
        if not even:
            return images, self._smooth(targets)
        mixed, soft = self.mixup(images[:even], targets[:even])
        if even == len(images):
            return mixed, soft
        images = torch.cat([mixed, images[even:]])
        return images, torch.cat([soft, self._smooth(targets[even:]).to(soft.dtype)])

    def _smooth(self, targets: Tensor) -> Tensor:
        """Return one-hot distributions with label smoothing, N K."""
        one_hot = F.one_hot(targets, self.num_classes).float()
        return one_hot * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
