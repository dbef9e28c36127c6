"""What a model expects of its input: size, normalisation, resizing."""

from typing import Any

from torch import nn

from zoo import registry

KEYS = ("size", "mean", "std", "interpolation", "crop_pct")


def own_input(model: nn.Module, name: str | None) -> dict[str, Any]:
    """Return the input that a model was published for; what is not known is None.

    Args:
        model: The model; it says how many channels it takes.
        name: Its name for `zoo.create_model`; None for a model from elsewhere.

    Returns:
        `size` (C, H, W), `mean` and `std` (of values in 0..1), `interpolation`, `crop_pct`.
    """
    known: dict[str, Any] = {}
    if name is not None and name.startswith("timm/"):
        from timm.data.config import resolve_model_data_config

        known = dict(resolve_model_data_config(model))
        known["size"] = known.get("input_size")
    elif name is not None:
        known = registry.model_info(name).get("input", {})
    found = {key: _plain(known.get(key)) for key in KEYS}
    channels = getattr(model, "in_chans", None)
    if found["size"] and channels:
        found["size"] = [channels, *found["size"][1:]]
        if channels != len(found["mean"] or ()):
            found["mean"] = found["std"] = None
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
