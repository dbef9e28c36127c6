"""From the configuration to what is done with each image, by timm's transforms."""

from collections.abc import Callable
from typing import Any

from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform

from zoo.data.dataset import Preparation
from zoo.errors import BadInput
from zoo.settings import DataConfig


def train_preparation(cfg: DataConfig) -> Preparation:
    """Return the augmentations of a resolved configuration.

    Raises:
        BadInput: timm does not understand `data.auto_augment`.
    """
    erase = None
    if cfg.re_prob:
        erase = RandomErasing(
            cfg.re_prob, mode=cfg.re_mode or "const", max_count=cfg.re_count or 1, device="cpu"
        )
    return Preparation(_train_transform(cfg), cfg.mean or [], cfg.std or [], erase)


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
    try:
        # The prefetcher's form ends with bytes: `Preparation` normalises.
        transform = create_transform(
            tuple(cfg.image_size), is_training=True, use_prefetcher=True, **chosen
        )
    except (AssertionError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise BadInput(
            f"data.auto_augment={cfg.auto_augment!r} is not one of timm's policies, "
            "like rand-m9-mstd0.5-inc1, augmix-m3-w3 or original"
        ) from error
    _keep_one_bit(transform)
    return transform


class _AtLeastOneBit:
    """A policy's rule for posterising, of which 0 bits become 1: Pillow 13 refuses 0."""

    def __init__(self, rule: Callable[..., tuple[int]]) -> None:
        self.rule = rule

    def __call__(self, *level: Any) -> tuple[int]:
        return (max(1, self.rule(*level)[0]),)


def _keep_one_bit(transform: Any) -> None:
    """Let no policy among the steps of `transform` ask for an image of 0 bits, all black."""
    for policy in transform.transforms:
        if isinstance(policy, RandAugment | AugMixAugment):
            chosen = list(policy.ops)
        elif isinstance(policy, AutoAugment):
            chosen = [op for group in policy.policy for op in group]
        else:
            continue
        for op in chosen:
            if op.name.startswith("Posterize"):
                op.level_fn = _AtLeastOneBit(op.level_fn)


def eval_preparation(cfg: DataConfig) -> Preparation:
    """Return how images are resized and cropped for evaluation."""
    transform: Any = create_transform(
        tuple(cfg.image_size),
        use_prefetcher=True,
        interpolation=cfg.interpolation or "bicubic",
        crop_pct=cfg.crop_pct,
        mean=tuple(cfg.mean or ()),
    )
    return Preparation(transform, cfg.mean or [], cfg.std or [])
