"""Checkpoints: read them safely, find the weights in them, load them strictly into a model.

A file is read as tensors or not at all: safetensors, or torch's format with `weights_only=True`.
Downloads are in `zoo/fetch.py`, the conversion of parameter names in `zoo/keys.py`.
"""

import argparse
import os
import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import BadWeights, first_line
from zoo.fetch import local_file
from zoo.keys import State, convert_keys, misfits

# Keys under which public checkpoints keep the weights, in order of preference: averaged ones first.
_BRANCHES = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "state_dict",
    "model",
    "net",
    "net_E",
    "module",
    "network_weights",  # nnU-Net
)
# Key of checkpoints of quantisation-aware training, which contain a graph, not the plain model.
QAT_KEY = "qat"
# Prefixes that wrappers add to every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    strict: bool = True,
    sha256: str | None = None,
) -> list[str]:
    """Load weights into `model`, under any key names known for its family.

    Args:
        model: A model of this package, or any module that has the keys of the file.
        source: A file, a run folder, an address (`https://...`, `hf:owner/name/file`), or the
            state dict itself, in any published key style of the model's family.
        strict: Raise unless every tensor fits; otherwise skip the others and return their names.
        sha256: Expected hash of a downloaded file; its first digits are enough.

    Returns:
        A line for each kind of mismatch; empty if `strict`.

    Raises:
        BadWeights: The source cannot be read, or does not fit.
    """
    named = "the given state dict" if isinstance(source, Mapping) else str(source)
    if isinstance(source, str | os.PathLike):
        source = read_checkpoint(source, sha256)
    if not isinstance(source, Mapping):
        raise BadWeights(f"source is a {type(source).__name__}; give a file, an address or tensors")
    return load_content(model, source, named, strict)


def load_content(
    model: nn.Module, source: Mapping[str, Any], named: str, strict: bool = True
) -> list[str]:
    """Load the result of `read_checkpoint`; otherwise like `load_weights`.

    Args:
        named: Name of the source, for messages.
    """
    if QAT_KEY in source and "state_dict" in source:
        raise BadWeights(
            f"{named} is a quantisation-aware checkpoint, not a plain {type(model).__name__}; load"
            " it with eval.py or export.py, or continue it with train.resume"
        )
    tensors = unwrap(source, named, model.state_dict().keys())
    return fill(model, convert_keys(tensors, model), named, strict)


def fill(model: nn.Module, state: State, named: str, strict: bool = True) -> list[str]:
    """Load tensors under the model's own names; see `load_weights`."""
    wrong = misfits(state, model)
    if wrong and strict:
        shown = "; ".join(wrong[:4]) + (f"; {len(wrong) - 4} more" if len(wrong) > 4 else "")
        is_head = all("head." in line for line in wrong)
        advice = (
            " (only the classifier: set num_classes as in the file, or strict=False for a new one)"
        )
        raise BadWeights(
            f"{named} does not fit {type(model).__name__}: {shown}{advice if is_head else ''}"
        )
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return wrong


def read_state_dict(source: str | os.PathLike, sha256: str | None = None) -> State:
    """Read the tensors of a file or an address; averaged weights are preferred.

    Raises:
        BadWeights: The file is missing, is truncated, has no weights, or has another hash.
    """
    return unwrap(read_checkpoint(source, sha256), str(source))


def read_checkpoint(source: str | os.PathLike, sha256: str | None = None) -> dict[str, Any]:
    """Read everything in a checkpoint, provided that it is only tensors and plain values.

    Args:
        source: A file, a run folder (its best checkpoint), `https://...` or `hf:owner/name/file`.
        sha256: Expected hash of a downloaded file; its first digits are enough.

    Raises:
        BadWeights: The file is missing, is truncated, has no weights, or has another hash.
    """
    return read_file(local_file(str(source), sha256))


def read_file(path: Path) -> dict[str, Any]:
    """Read a local checkpoint; see `read_checkpoint`."""
    if not path.is_file():
        raise BadWeights(
            f"{path} does not exist; give a file, a run folder, or an address (https or hf:)"
        )
    if path.stat().st_size == 0:
        raise BadWeights(f"{path} is empty; download or save it again")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    content = read(path)
    if not isinstance(content, dict):
        raise BadWeights(
            f"{path} contains a {type(content).__name__}, not a dictionary of weights; "
            "save the model's state_dict()"
        )
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadWeights(f"{path} is truncated or not a safetensors file ({error})") from error


def _harmless() -> list[Any]:
    """Return the types of plain values in public checkpoints: parsed arguments, NumPy scalars."""
    import numpy as np

    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)]
    return [argparse.Namespace, np._core.multiarray.scalar, np.dtype, *dtypes]  # type: ignore[attr-defined]


# Parts of torch's messages about a pickle that names a class or function outside its safe list.
_FOREIGN_CODE = (" GLOBAL ", "Can only create new object", "Trying to call", "Can only build")


def _read_torch(path: Path) -> Any:
    import pickle

    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about formats that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _FOREIGN_CODE):
            raise BadWeights(
                f"{path} contains more than weights (reading this pickle would run code); save the"
                " model's state_dict() and load that"
            ) from error
        raise BadWeights(f"{path} is truncated or not a checkpoint") from error
    except Exception as error:  # damaged files raise errors of any kind
        raise BadWeights(
            f"{path} is truncated or not a checkpoint ({first_line(error)})"
        ) from error


def unwrap(
    content: Mapping[str, Any], named: str = "the given state dict", own: Set[str] = frozenset()
) -> State:
    """Return the weights in a checkpoint, without the prefixes that wrappers add.

    Args:
        content: Everything in the checkpoint.
        named: Name of the source, for messages.
        own: Keys of the model to load into; prefixes that belong to them are kept.

    Raises:
        BadWeights: There are no tensors.
    """
    state = _tensors(content)
    state.pop("n_averaged", None)  # the counter of torch's AveragedModel
    if not state:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise BadWeights(f"{named} contains no weights, only {keys}")
    stripped = True
    while stripped and not own & state.keys():
        stripped = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if stripped:
            state = {key.removeprefix(stripped): value for key, value in state.items()}
    return state


def _tensors(content: Mapping[str, Any]) -> State:
    """Return the named tensors of `content`, or those of the first branch that has any."""
    branches = [content[key] for key in _BRANCHES if isinstance(content.get(key), Mapping)]
    inside = next((found for branch in branches if (found := _tensors(branch))), None)
    return inside or {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
