"""Build one of the package's backbones: check arguments, construct it, load published weights."""

import inspect
from collections.abc import Sequence
from typing import Any

from timm.models import adapt_input_conv
from torch import nn

from zoo.backbone import Backbone, FeatureExtractor
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, BadWeights, unknown_value
from zoo.keys import convert_keys
from zoo.registry import ModelSpec
from zoo.weights import fill, load_weights, read_state_dict

RATES = ("drop_rate", "drop_path_rate")


def build_backbone(
    spec: ModelSpec,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    checkpoint_path: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a registered model; arguments and errors are those of `zoo.create_model`.

    Args:
        spec: Specification of the model.
        **arguments: Arguments of the model; None keeps the default.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    given.setdefault("in_chans", spec.in_chans)
    check_values(given)
    build = spec.builder()
    known = inspect.signature(build).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        given = {
            key: value for key, value in given.items() if key in known or key not in RATES or value
        }
        others = [key for key in given if key not in known]
        if "img_size" in others:
            raise BadInput(f"{spec.name} has no parameters that depend on img_size; leave it out")
        if others:
            where = f" of {spec.name}"
            raise BadInput(unknown_value("argument", others[0], sorted(known), where=where))
    if features_only and "dense" in known:
        given.setdefault("dense", True)  # the family's public dense code computes differently
    model = build(**given)
    if pretrained:
        _load_published(model, spec)
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


def _load_published(model: Backbone, spec: ModelSpec) -> None:
    """Load the first published checkpoint that has an address, adapted to classes and channels."""
    entry = next((entry for entry in spec.weights if "url" in entry), None)
    if entry is None:
        pages = " or ".join(entry["page"] for entry in spec.weights if "page" in entry)
        way_out = (
            f"fetch them from {pages} and give checkpoint_path" if pages else "set pretrained=False"
        )
        raise BadWeights(f"{spec.name} has no published weights that can be downloaded; {way_out}")
    state = convert_keys(read_state_dict(entry["url"], entry.get("sha256")), model)
    own = model.state_dict()
    for classifier in model.classifier_names():
        for key in (f"{classifier}.weight", f"{classifier}.bias"):
            if key in state and (key not in own or own[key].shape != state[key].shape):
                del state[key]
                state |= {key: own[key]} if key in own else {}
    first = f"{model.first_conv_name()}.weight"
    if first in state and state[first].shape[1] != model.in_chans:
        state[first] = adapt_input_conv(model.in_chans, state[first])
    fill(model, state, f"the published checkpoint of {spec.name}")
