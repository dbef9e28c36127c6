"""Mixup and cutmix of a batch, by timm, for any number of images."""

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F


class Mixing:
    """Mixes images and turns their classes into distributions."""

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
        """Take the arguments of `train`, in the order of their names there."""
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            prob=prob,
            switch_prob=switch_prob,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def off(self) -> None:
        """Leave the images as they are from now on; the classes still become distributions."""
        self.mixup.mixup_enabled = False

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: N C H W; changed in place.
            targets: Class numbers, N.

        Returns:
            The images and one distribution for each, N K.
        """
        even = len(images) // 2 * 2  # timm mixes in pairs; the odd one out stays itself
        if not even:
            return images, self._smooth(targets)
        mixed, soft = self.mixup(images[:even], targets[:even])
        if even == len(images):
            return mixed, soft
        images = torch.cat([mixed, images[even:]])
        return images, torch.cat([soft, self._smooth(targets[even:]).to(soft.dtype)])

    def _smooth(self, targets: Tensor) -> Tensor:
        hot = F.one_hot(targets, self.num_classes).float()
        return hot * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
