"""Build one of the package's backbones: check arguments, construct it, load published weights."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from timm.models import adapt_input_conv
from torch import nn

from zoo import registry
from zoo.backbone import Backbone, FeatureExtractor
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, BadWeights
from zoo.weights import converted, load_weights, read_state_dict

RATES = ("drop_rate", "drop_path_rate")


def build_backbone(
    name: str,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    checkpoint_path: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a registered model; arguments and errors are those of `zoo.create_model`.

    Args:
        **arguments: Of the model; those that are None keep its default.
    """
    build = registry.get_builder(name)
    given = {key: value for key, value in arguments.items() if value is not None}
    given.setdefault("in_chans", registry.get_spec(name).in_chans)
    check_values(given)
    given = _supported(name, build, given)
    if features_only and "dense" in inspect.signature(build).parameters:
        given.setdefault("dense", True)  # the family's public dense code computes differently
    model = build(**given)
    if pretrained:
        _load_published(model, name)
    if features_only:
        model = FeatureExtractor(model, out_indices)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    return model


def check_values(arguments: dict[str, Any]) -> None:
    """Raise `BadInput` for rates outside 0..1 and counts that are not whole numbers."""
    for key in RATES:
        rate = arguments.get(key, 0.0)
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise BadInput(f"{key}={rate!r} must be at least 0 and less than 1")
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        if key in arguments:
            whole_number(arguments[key], key, least)


def _supported(name: str, build: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without rates of 0 that the model does not know.

    Raises:
        BadInput: Another argument that it does not know.
    """
    known = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return given
    unknown = [key for key in given if key not in known and not (key in RATES and given[key] == 0)]
    if "img_size" in unknown:
        raise BadInput(f"{name} has no parameters that depend on img_size; feed it any size")
    if unknown:
        raise BadInput(f"{name} has no argument {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return {key: value for key, value in given.items() if key in known}


def _load_published(model: Backbone, name: str) -> None:
    """Load the first published weights that have an address, fitted to classes and channels."""
    entries = registry.get_spec(name).weights
    entry = next((entry for entry in entries if "url" in entry), None)
    if entry is None:
        pages = " or ".join(entry["page"] for entry in entries if "page" in entry)
        way_out = (
            f"download them from {pages} and give checkpoint_path" if pages else "pretrained=False"
        )
        raise BadWeights(f"{name} has no published weights that a program can fetch; {way_out}")
    state = converted(read_state_dict(entry["url"], entry.get("sha256")), model)
    own = model.state_dict()
    for classifier in model.classifier_names():
        for key in (f"{classifier}.weight", f"{classifier}.bias"):
            if key in state and (key not in own or own[key].shape != state[key].shape):
                del state[key]
                state |= {key: own[key]} if key in own else {}
    first = f"{model.first_conv_name()}.weight"
    if first in state and state[first].shape[1] != model.in_chans:
        state[first] = adapt_input_conv(model.in_chans, state[first])
    load_weights(model, state)
