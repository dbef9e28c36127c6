"""Training and evaluation transforms of single images, built by timm."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from zoo.data.dataset import Preparation
from zoo.errors import BadInput
from zoo.images import resize_and_crop
from zoo.settings import DataConfig

_EXAMPLES = "examples: rand-m9-mstd0.5-inc1, augmix-m3-w3, original"
_MOST = {"n": 20, "w": 20, "d": 20, "m": 100}  # steps, mixed images, their steps, magnitude


def train_preparation(cfg: DataConfig) -> Preparation:
    """Return how images are augmented for training.

    Args:
        cfg: A resolved configuration.

    Raises:
        BadInput: `data.auto_augment` is not a valid policy of timm.
    """
    erase = None
    if cfg.re_prob:
        erase = RandomErasing(
            cfg.re_prob, mode=cfg.re_mode or "const", max_count=cfg.re_count or 1, device="cpu"
        )
    return Preparation(
        _train_transform(cfg), cfg.mean or [], cfg.std or [], cfg.channel_order == "BGR", erase
    )


def _train_transform(cfg: DataConfig) -> Any:
    chosen: dict[str, Any] = {
        "scale": cfg.scale,
        "ratio": cfg.ratio,
        "hflip": cfg.hflip,
        "vflip": cfg.vflip,
        "color_jitter": cfg.color_jitter or None,
        "auto_augment": cfg.auto_augment,
        "interpolation": cfg.train_interpolation,
        "mean": cfg.mean,
    }
    _check_policy(cfg.auto_augment)
    try:
        # With use_prefetcher the transform returns uint8; `Preparation` normalises.
        transform: Any = create_transform(
            tuple(cfg.image_size), is_training=True, use_prefetcher=True, **chosen
        )
    except (AssertionError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise BadInput(
            f"data.auto_augment={cfg.auto_augment!r} is not a policy of timm; {_EXAMPLES}"
        ) from error
    _posterize_to_one_bit_or_more(transform)
    transform.transforms[0] = RandomCrop(
        tuple(cfg.image_size), cfg.scale, cfg.ratio, str(cfg.train_interpolation)
    )
    return transform


def _check_policy(policy: str | None) -> None:
    """Raise `BadInput` for parts that timm would ignore, and for steps without end."""
    for part in (policy or "").split("-")[1:]:
        key, number = re.fullmatch(r"([a-z]*)(.*)", part).groups()  # type: ignore[union-attr]
        if part.startswith("t"):  # names of transforms
            continue
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadInput(
                f"data.auto_augment={policy!r}: part {part!r} has no number; {_EXAMPLES}"
            )
        if key in _MOST and value > _MOST[key]:
            raise BadInput(f"data.auto_augment={policy!r}: {key} must be at most {_MOST[key]}")


class _AtLeastOneBit:
    """timm's number of bits for posterising, but at least 1."""

    def __init__(self, bits: Callable[..., tuple[int]]) -> None:
        self.bits = bits

    def __call__(self, *level: Any) -> tuple[int]:
        return (max(1, self.bits(*level)[0]),)


def _posterize_to_one_bit_or_more(transform: Any) -> None:
    """Change the posterising steps of `transform` that would keep 0 bits, which Pillow 13 refuses.

    timm has no option for this, so the `level_fn` of its steps is replaced. A test states what that
    relies on.
    """
    for policy in transform.transforms:
        for step in _steps(policy):
            if step.name.startswith("Posterize"):
                step.level_fn = _AtLeastOneBit(step.level_fn)


def _steps(policy: Any) -> list[Any]:
    """Return the augmentation steps of one of timm's policies; none for another transform."""
    if isinstance(policy, RandAugment | AugMixAugment):
        return list(policy.ops)
    if isinstance(policy, AutoAugment):
        return [step for group in policy.policy for step in group]
    return []


def eval_preparation(cfg: DataConfig) -> Preparation:
    """Return how images are resized and cropped for evaluation.

    Args:
        cfg: A resolved configuration.
    """
    height, width = cfg.image_size
    method = Image.Resampling[str(cfg.interpolation or "bicubic").upper()]
    crop = CentreCrop((height, width), cfg.crop_pct or 1.0, method)
    return Preparation(crop, cfg.mean or [], cfg.std or [], cfg.channel_order == "BGR")


@dataclass(frozen=True)
class CentreCrop:
    """Resizes the shorter side of an image and crops the centre, like timm's transform.

    Attributes:
        size: (height, width) in pixels.
        crop_pct: Side of the crop / side of the resized image.
        interpolation: Pillow's filter.
    """

    size: tuple[int, int]
    crop_pct: float
    interpolation: Image.Resampling

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the crop as bytes C H W."""
        return pil_to_tensor(resize_and_crop(image, self.size, self.crop_pct, self.interpolation))


class RandomCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop; a crop has at least one pixel, also of a tiny or thin image."""

    def get_params(self, img: Any, scale: Any, ratio: Any) -> tuple[int, int, int, int]:  # type: ignore[override]
        """Return top, left, height and width of a crop in pixels."""
        top, left, height, width = super().get_params(img, scale, ratio)
        height, width = min(max(1, height), img.height), min(max(1, width), img.width)
        return min(top, img.height - height), min(left, img.width - width), height, width
