"""The input that published weights expect: size, normalisation, resizing."""

from typing import Any

from torch import nn

from zoo import registry

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
KEYS = ("size", "mean", "std", "interpolation", "crop_pct", "channel_order")


def published_input(name: str | None) -> dict[str, Any]:
    """Return the input that the published weights of a model expect; unknown values are None.

    Args:
        name: A name for `zoo.create_model`; None for a model from elsewhere.

    Returns:
        `size` (C, H, W), `mean` and `std` (of values in 0..1), `interpolation`, `crop_pct`,
        `channel_order` (`"BGR"`, or None for RGB).
    """
    known: dict[str, Any] = {}
    if name is not None and registry.is_timm(name):
        from timm.data.config import resolve_data_config
        from timm.models import get_pretrained_cfg

        cfg = get_pretrained_cfg(name.removeprefix("timm/"))
        known = dict(resolve_data_config(pretrained_cfg=cfg.to_dict() if cfg else {}))
        known["size"] = known["input_size"]
    elif name is not None:
        known = registry.model_info(name).get("input", {})
    return {key: _as_list(known.get(key)) for key in KEYS}


def published_normalisation(name: str) -> dict[str, Any]:
    """Return `mean`, `std` and `channel_order` that published weights expect."""
    mean, std = published_statistics(name)
    return {"mean": mean, "std": std, "channel_order": published_input(name)["channel_order"]}


def published_statistics(name: str) -> tuple[list[float], list[float]]:
    """Return mean and std that published weights expect, or ImageNet's if they are unknown."""
    published = published_input(name)
    return published["mean"] or IMAGENET_MEAN, published["std"] or IMAGENET_STD


def is_published(key: str, value: list[float]) -> bool:
    """Return whether the published weights of any of our models expect this value."""
    return any(published_input(name)[key] == value for name in registry.list_models())


def input_of(model: nn.Module, name: str | None) -> dict[str, Any]:
    """Return `published_input(name)` for a model that may take other channels.

    Mean and std are None if the model's number of channels differs from the published one.
    """
    found = published_input(name)
    channels = getattr(model, "in_chans", None)
    if found["size"] and channels:
        found["size"] = [channels, *found["size"][1:]]
        if channels != len(found["mean"] or ()):
            found["mean"] = found["std"] = found["channel_order"] = None
    return found


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
