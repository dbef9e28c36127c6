"""Checkpoints: find the weights in them, check them, load them strictly into a model.

Files are read in `zoo/tensor_files.py`, downloads are in `zoo/fetch.py`, and the conversion of
parameter names is in `zoo/keys.py`.
"""

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import hub, merging, tensor_files
from zoo.errors import BadInput, BadWeights, shown
from zoo.fetch import is_address, local_file
from zoo.hub_files import is_repository
from zoo.keys import State, convert_keys, misfits

# Keys under which public checkpoints keep the weights, in order of preference: averaged ones first.
_BRANCHES = (
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "net_E",
    "module",
    "network_weights",  # nnU-Net
)
_MAX_DEPTH = 4  # of branches inside branches
# Key of checkpoints of quantisation-aware training, which contain a graph, not the plain model.
QAT_KEY = "qat"
# Prefixes that wrappers add to every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "bottom_up.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ONLY_CLASSIFIER = "only the classifier"


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    strict: bool = True,
    sha256: str | None = None,
) -> list[str]:
    """Load weights into `model`, under any key names known for its family.

    Args:
        model: A model of this package, or any module that has the keys of the file.
        source: A file, a run folder, an address (`https://...`, `hf:owner/name/file`,
            `gdrive:id`), a repository (`hf-hub:owner/name`), or the state dict itself, in any
            published key style of the model's family.
        strict: Raise unless every tensor fits; otherwise skip the others and return their names.
        sha256: Expected hash of the file; its first digits are enough.

    Returns:
        A line for each kind of mismatch; empty if `strict`.

    Raises:
        BadInput: An argument is of another type, or has no effect.
        BadWeights: The source cannot be read, does not fit, or has values that cannot be weights.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if isinstance(source, Mapping) and sha256 is not None:
        raise BadInput("sha256 has no effect on a state dict; leave it out, or give a file")
    content, named = opened(source, sha256)
    return load_content(model, content, named, strict)


def opened(
    source: str | os.PathLike | Mapping[str, Any], sha256: str | None = None
) -> tuple[Mapping[str, Any], str]:
    """Return the content of a source of weights, and its name for messages."""
    if isinstance(source, Mapping):
        return source, "the given state dict"
    text = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(text, str):
        raise BadWeights(f"source is a {type(source).__name__}; give a file, an address or tensors")
    return read_checkpoint(text, sha256), shown(text)


def load_content(
    model: nn.Module,
    content: Mapping[str, Any],
    named: str,
    strict: bool = True,
    advice: str = "set num_classes as in the file, or strict=False for a new one",
) -> list[str]:
    """Load the result of `read_checkpoint`; otherwise like `load_weights`.

    Args:
        named: Name of the source, for messages.
        advice: What to do if nothing but the classifier does not fit.
    """
    model = _unwrapped(model)
    return fill(model, state_for(model, content, named), named, strict, advice)


def state_for(
    model: nn.Module, content: Mapping[str, Any], named: str, branch: str | None = None
) -> State:
    """Return the weights in a checkpoint, under the names that `model` has.

    Args:
        branch: Key of the weights to take, if the checkpoint has several; it may be missing.

    Raises:
        BadWeights: There are no weights, or they are those of quantisation-aware training.
    """
    if QAT_KEY in content and "state_dict" in content:
        raise BadWeights(
            f"{named} is a quantisation-aware checkpoint, not a plain {type(model).__name__}; load"
            " it with eval.py or export.py, or continue it with train.resume"
        )
    if merging.KEY in content and "state_dict" in content:
        return _with_adapters(model, content, named)
    if branch is not None and isinstance(content.get(branch), Mapping):
        content = content[branch]
    return convert_keys(unwrap(content, named, model.state_dict().keys()), model)


def _with_adapters(model: nn.Module, content: Mapping[str, Any], named: str) -> State:
    """Return the weights of a base with the adapters of a checkpoint, under the model's names."""
    about = content[merging.KEY]
    source = str(about["base"]["source"])
    _, base = read_base(source, named)
    merging.check_base(identity(base, source), about, source, named)
    saved = content.get("state_dict_ema") or content["state_dict"]
    return convert_keys(merging.merged_state(state_for(model, base, source), saved, about), model)


def read_base(source: str, named: str) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of the base of adapters.

    Args:
        source: What the checkpoint of adapters recorded, or the user gave.
        named: The checkpoint of adapters, for messages.

    Raises:
        BadWeights: The base cannot be read.
    """
    try:
        return read_source(source)
    except BadWeights as error:
        reason = str(error).partition(";")[0]
        raise BadWeights(
            f"{named} has only adapters, and their base is missing: {reason}; give"
            " model.base=<the base's run or file> (in Python: base=...)"
        ) from error


def identity(content: Mapping[str, Any], named: str) -> str:
    """Return the SHA-256 of the weights in a checkpoint, which does not depend on other entries."""
    if merging.KEY not in content:
        return merging.identity(unwrap(content, named))
    saved = content.get("state_dict_ema") or content["state_dict"]
    base = torch.tensor(list(bytes.fromhex(str(content[merging.KEY]["base"]["sha256"]))))
    return merging.identity({**saved, "base": base})


def fill(
    model: nn.Module, state: State, named: str, strict: bool = True, advice: str = ""
) -> list[str]:
    """Load tensors under the model's own names; see `load_weights`."""
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise BadInput(
            f"{type(model).__name__} is on the meta device and has no memory for weights; build it"
            " on another device"
        )
    wrong = misfits(state, model)
    if wrong and strict:
        shown_lines = "; ".join(wrong[:4])
        shown_lines += f"; {len(wrong) - 4} more" if len(wrong) > 4 else ""
        heads = classifier_names(model) or ("head",)
        is_head = all(any(name in line for name in heads) for line in wrong)
        hint = f" ({ONLY_CLASSIFIER}: {advice})" if is_head and advice else ""
        raise BadWeights(f"{named} does not fit {type(model).__name__}: {shown_lines}{hint}")
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    _check_values(fitting, own, named)
    model.load_state_dict(fitting, strict=False)
    return wrong


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch for compilation and several devices."""
    for name in ("_orig_mod", "module"):
        inner = model._modules.get(name)
        if inner is not None and type(model).__module__.startswith("torch."):
            return _unwrapped(inner)
    return model


def _check_values(state: State, own: State, named: str) -> None:
    """Raise `BadWeights` for tensors whose values cannot be those of weights."""
    faults = {key: what for key, t in state.items() if (what := _fault(t, own[key]))}
    if faults:
        key, what = next(iter(faults.items()))
        more = f", and {len(faults) - 1} more tensors" if len(faults) > 1 else ""
        raise BadWeights(f"{named} cannot be loaded: {key} {what}{more}")


def _fault(tensor: Tensor, own: Tensor) -> str:
    """Return why `tensor` cannot become the values of `own`; "" if it can."""
    if tensor.layout != torch.strided:
        return "is sparse; save dense tensors"
    if tensor.is_meta:
        return "is on the meta device and has no values; save the model after loading its weights"
    kind = str(tensor.dtype).removeprefix("torch.")
    wanted = str(own.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        return f"is quantised ({kind}); save the float model"
    if not own.is_floating_point() and not own.is_complex():
        if tensor.is_complex():
            return f"is {kind}, the model has {wanted}"
        same = torch.equal(tensor.to(own.dtype).to(tensor.dtype), tensor)
        return "" if same else f"is {kind} and has values that are no {wanted}"
    if tensor.dtype not in _FLOATS and not (tensor.is_complex() and own.is_complex()):
        advice = "dequantise it first" if kind in ("int8", "uint8") else "save floats"
        return f"is {kind}, the model has {wanted}; {advice}"
    converted = tensor.detach().to(own.device, own.dtype)
    wrong = ~converted.isfinite()
    if bool(wrong.any()) and bool((wrong & own.detach().isfinite()).any()):
        if bool(tensor.isfinite().all()):
            return f"has values beyond the range of {wanted}"
        what = "NaN" if bool(tensor.isnan().any()) else "infinite values"
        return f"contains {what}; the training diverged, or the file is damaged"
    return ""


def classifier_names(model: Any) -> tuple[str, ...]:
    """Return the dotted names of a model's classifiers; of timm's models, too."""
    names = getattr(model, "classifier_names", None)
    if names is not None:
        return tuple(names())
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def read_state_dict(source: str | os.PathLike, sha256: str | None = None) -> State:
    """Read the tensors of a file or an address; averaged weights are preferred.

    Raises:
        BadWeights: The file is missing, is truncated, has no weights, or has another hash.
    """
    return unwrap(read_checkpoint(source, sha256), str(source))


def read_checkpoint(source: str | os.PathLike, sha256: str | None = None) -> dict[str, Any]:
    """Read everything in a checkpoint, provided that it is only tensors and plain values.

    Args:
        source: A file, a run folder (its best checkpoint), `https://...`, `hf:owner/name/file`,
            `hf-hub:owner/name` or `gdrive:id`.
        sha256: Expected hash of the file; its first digits are enough.

    Raises:
        BadWeights: The file is missing, is truncated, has no weights, or has another hash.
    """
    return read_source(str(source), sha256=sha256)[1]


def read_source(source: str, **options: Any) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of a checkpoint; `options` are those of `local_file`.

    A file in the cache that cannot be read is fetched again. The content of a repository on the hub
    is that of `zoo.hub.read`.
    """
    if is_repository(source):
        known = ("sha256", "cache_dir")
        return hub.read(source, **{key: value for key, value in options.items() if key in known})
    path = local_file(source, **options)
    try:
        return path, tensor_files.read(path)
    except BadWeights:
        if not is_address(source):
            raise
    path = local_file(source, **options, refresh=True)
    return path, tensor_files.read(path)


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
        keys = ", ".join(shown(key) for key in list(content)[:5]) or "nothing"
        raise BadWeights(f"{named} contains no weights, only {keys[:300]}")
    stripped = True
    while stripped and not own & state.keys():
        stripped = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if stripped:
            state = {key.removeprefix(stripped): value for key, value in state.items()}
    return state


def _tensors(content: Mapping[str, Any], depth: int = 0) -> State:
    """Return the named tensors of `content`, or those of the first branch that has any."""
    found: State = {}
    if depth < _MAX_DEPTH:
        branches = [content[key] for key in _BRANCHES if isinstance(content.get(key), Mapping)]
        found = next((inside for b in branches if (inside := _tensors(b, depth + 1))), {})
    return found or {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
