"""`tests/contract/keys/*.txt`: names and shapes of parameters, which saved checkpoints rely on.

There is a list for the smallest variant of each family; of each task and number of axes, if a
family has several.
"""

from pathlib import Path

from torch import nn

from tools.project import ROOT, axes, smallest
from zoo import registry

FOLDER = ROOT / "tests" / "contract" / "keys"


def file_of(name: str) -> Path:
    """Return the file of one of the `smallest` models."""
    spec = registry.get_spec(name)
    others = [other for other in smallest() if registry.get_spec(other).family == spec.family]
    words = [spec.family]
    if len({registry.get_spec(other).task for other in others}) > 1:
        words.append(spec.task)
    if len({axes(other) for other in others}) > 1:
        words.append(f"{axes(name)}d")
    return FOLDER / f"{'-'.join(words)}.txt"


def render(name: str, model: nn.Module) -> str:
    """Return the list of a model."""
    rows = (f"{key} {list(value.shape)}" for key, value in model.state_dict().items())
    return "\n".join([f"# {name}", *rows]) + "\n"


def render_named(name: str) -> str:
    """Build a model without memory for its weights, and return its list."""
    import torch

    from zoo.factory import create_model

    with torch.device("meta"):
        return render(name, create_model(name))


def missing() -> list[str]:
    """Return the smallest models without a list, or whose list is of another variant."""
    return [name for name in smallest() if not _is_of(file_of(name), name)]


def _is_of(file: Path, name: str) -> bool:
    return file.is_file() and file.read_text("utf-8").startswith(f"# {name}\n")
