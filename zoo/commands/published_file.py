"""Load a published file of weights strictly, as `zoo weights --check` and `zoo verify` do."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from zoo import registry
from zoo.build import build_backbone
from zoo.weights import classifier_names, load_content, state_for


def load(spec: registry.ModelSpec, entry: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
    """Return the model of a published file, in evaluation mode.

    Args:
        spec: The model.
        entry: Its entry of the facts; `head: false` keeps a random classifier.
        content: The content of the file.

    Raises:
        BadWeights: The file does not fit.
    """
    named = f"{spec.name}.{entry['tag']}"
    model: nn.Module = build_backbone(registry.get_spec(named), num_classes=entry.get("classes"))
    if not entry.get("head", True):
        state = state_for(model, content, named, entry.get("branch"))
        own = model.state_dict()
        heads = tuple(f"{name}." for name in classifier_names(model))
        content = state | {k: t for k, t in own.items() if k.startswith(heads)}
    elif entry.get("branch") in content:
        content = content[entry["branch"]]
    load_content(model, content, named)
    return model.eval()
