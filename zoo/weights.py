"""Checkpoints: fetch, read safely, recognise who named the keys, convert, load strictly.

A file is read as tensors or not at all: safetensors, or torch's format with `weights_only=True`.
"""

import argparse
import difflib
import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from zoo.backbone import FeatureExtractor
from zoo.errors import BadWeights
from zoo.keys import State, current, recognise

# Where public checkpoints keep the weights; averaged weights are taken where there are both.
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
# A checkpoint of quantisation-aware training has this key: it holds a graph, not the plain model.
QAT_KEY = "qat"
# What wrappers put in front of every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


def load_weights(
    model: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    strict: bool = True,
    sha256: str | None = None,
) -> list[str]:
    """Load published or own weights into `model`, whatever the names of the keys.

    Args:
        model: A model of this package, or any module if the keys are its own.
        source: A file, a run folder, an address (`https://...`, `hf:owner/name/file`), or the
            state dict itself, in any published key style of the model's family.
        strict: Everything must fit. Otherwise what does not fit is left as it is and returned.
        sha256: Checked on a file that is downloaded; the first digits are enough.

    Returns:
        What did not fit, a line each; empty if `strict`.

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
    """Load what `read_checkpoint` returned; arguments and errors as of `load_weights`.

    Args:
        named: What to call it in messages.
    """
    if QAT_KEY in source and "state_dict" in source:
        raise BadWeights(
            f"{named} is a quantisation-aware checkpoint, not a plain {type(model).__name__}; load"
            " it with eval.py or export.py, or continue it with train.resume"
        )
    state = converted(unwrap(source, named, model.state_dict().keys()), model)
    wrong = misfits(state, model)
    if wrong and strict:
        shown = "; ".join(wrong[:4]) + (f"; {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise BadWeights(f"{named} does not fit {type(model).__name__}: {shown}{_advice(wrong)}")
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return wrong


def _advice(wrong: list[str]) -> str:
    heads = [line for line in wrong if "head." in line]
    if heads and len(heads) == len(wrong):
        return (
            " (only the classifier: set num_classes as in the file, or strict=False for a new one)"
        )
    return ""


def converted(state: State, model: nn.Module) -> State:
    """Return `state` in the model's own names and for its size.

    Tables that were learnt at another image size are resampled. Parts that a features-only model
    lacks are dropped.
    """
    own = model.state_dict()
    style = recognise(state, getattr(model, "key_styles", ()))
    state = current(state, own) if style is None else style.to_own(state, model)
    if style is not None:
        state = {key: _shaped_like(own.get(key), tensor) for key, tensor in state.items()}
    for name, module in model.named_modules():
        fit: Any = getattr(module, "fit_table", None)
        key = f"{name}.table"
        if fit is not None and key in state:
            state[key] = fit(state[key])
    if isinstance(model, FeatureExtractor):
        state = {key: value for key, value in state.items() if key in own}
    return state


def _shaped_like(own: Tensor | None, tensor: Tensor) -> Tensor:
    """Add or drop axes of length 1: a 1x1 convolution may be published as a linear layer."""
    if own is None or [n for n in own.shape if n != 1] != [n for n in tensor.shape if n != 1]:
        return tensor
    return tensor.reshape(own.shape)


def misfits(state: State, model: nn.Module) -> list[str]:
    """Say what is missing, unexpected or of another shape, a line each."""
    own = model.state_dict()
    counters = "num_batches_tracked"  # of no effect on what a model computes; old files lack them
    missing = [key for key in own if key not in state and not key.endswith(counters)]
    unexpected = [key for key in state if key not in own and not key.endswith(counters)]
    shapes = [
        f"{key} is {_shape(state[key])}, the model has {_shape(own[key])}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    lines = []
    if missing:
        lines.append(_listed("missing", missing))
    if unexpected:
        near = difflib.get_close_matches(unexpected[0], missing, n=1)
        lines.append(_listed("unexpected", unexpected) + (f" (like {near[0]}?)" if near else ""))
    return lines + shapes


def _listed(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def read_state_dict(source: str | os.PathLike, sha256: str | None = None) -> State:
    """Read the tensors of a file or an address; averaged weights where there are both.

    Raises:
        BadWeights: No such file, truncated, not weights, or another hash than stated.
    """
    return unwrap(read_checkpoint(source, sha256), str(source))


def read_checkpoint(source: str | os.PathLike, sha256: str | None = None) -> dict[str, Any]:
    """Read everything that a checkpoint holds, if it is nothing but tensors and plain values.

    Args:
        source: A file, a run folder (its best checkpoint), `https://...` or `hf:owner/name/file`.
        sha256: Checked on a file that is downloaded; the first digits are enough.

    Raises:
        BadWeights: No such file, truncated, not weights, or another hash than stated.
    """
    path = local_file(str(source), sha256)
    if path.is_dir():
        path = run_checkpoint(path)
    if not path.is_file():
        raise BadWeights(f"no file {path}")
    if path.stat().st_size == 0:
        raise BadWeights(f"{path} is empty")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    content = read(path)
    if not isinstance(content, dict):
        raise BadWeights(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def run_checkpoint(folder: Path, which: str = "best") -> Path:
    """Return the checkpoint of a run folder: `"best"`, or the last where there is no best."""
    for name in (f"{which}.ckpt", "last.ckpt"):
        for place in (folder, folder / "checkpoints"):
            if (place / name).is_file():
                return place / name
    raise BadWeights(f"{folder} holds no checkpoint (best.ckpt or last.ckpt)")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadWeights(f"{path} is truncated or no safetensors file ({error})") from error


def _harmless() -> list[Any]:
    """Plain values that public checkpoints hold beside tensors: parsed arguments, numpy scalars."""
    import numpy as np

    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)]
    return [argparse.Namespace, np._core.multiarray.scalar, np.dtype, *dtypes]  # type: ignore[attr-defined]


# What torch says of a pickle that names a class or function it does not know to be harmless.
_FOREIGN_CODE = (" GLOBAL ", "Can only create new object", "Trying to call", "Can only build")


def _read_torch(path: Path) -> Any:
    import pickle

    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about formats that are refused anyhow
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _FOREIGN_CODE):
            raise BadWeights(
                f"{path} holds more than weights (a pickle that would run code to be read); "
                "save its state_dict() and load that"
            ) from error
        raise BadWeights(f"{path} is truncated or no checkpoint") from error
    except Exception as error:  # damaged bytes raise whatever they happen to mean
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadWeights(f"{path} is truncated or no checkpoint ({first})") from error


def unwrap(
    content: Mapping[str, Any], named: str = "the given state dict", own: Set[str] = frozenset()
) -> State:
    """Return the weights among what a checkpoint holds, without the prefixes of wrappers.

    Args:
        content: What the checkpoint holds.
        named: What to call it in messages.
        own: Names that the model to be filled has; prefixes that belong to them stay.

    Raises:
        BadWeights: There are no tensors.
    """
    state = _tensors(content)
    state.pop("n_averaged", None)  # the counter of torch's AveragedModel
    if not state:
        held = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise BadWeights(f"{named} holds no weights, but {held}")
    stripped = True
    while stripped and not own & state.keys():
        stripped = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if stripped:
            state = {key.removeprefix(stripped): value for key, value in state.items()}
    return state


def _tensors(content: Mapping[str, Any]) -> State:
    """Return the named tensors of `content`, or those of the first branch that holds any."""
    branches = [content[key] for key in _BRANCHES if isinstance(content.get(key), Mapping)]
    inside = next((found for branch in branches if (found := _tensors(branch))), None)
    return inside or {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def local_file(source: str, sha256: str | None = None) -> Path:
    """Return the path of `source`, fetching it into the cache if it is an address.

    Raises:
        BadWeights: The address cannot be fetched, or the file has another hash than stated.
    """
    if source.startswith("hf:"):
        return _from_hub(source.removeprefix("hf:"), sha256)
    if not source.startswith(("https://", "http://")):
        return Path(source).expanduser()
    address = urllib.parse.urlsplit(source)
    if address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise BadWeights(f"{source}: weights are fetched over https only")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    # The address is part of the name, so that files of one name from two places stay apart.
    tag = hashlib.sha256(source.encode()).hexdigest()[:8]
    path = folder / f"zoo-{tag}-{Path(address.path).name or 'weights'}"
    with FileLock(f"{path}.lock"):  # another process may be fetching it
        if path.exists():
            _check_hash(path, f"{source}, kept as {path},", sha256)
        else:
            _download(source, path, sha256)
    return path


def _from_hub(name: str, sha256: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    if name.count("/") < 2 or not all(name.split("/", 2)):
        raise BadWeights(f"hf:{name}: give hf:owner/name/file")
    owner, repository, file = name.split("/", 2)
    try:
        path = Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the hub's client raises its own, requests' and OS errors
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadWeights(f"hf:{name} cannot be fetched: {first}") from error
    _check_hash(path, f"hf:{name}", sha256)
    return path


def _download(address: str, path: Path, sha256: str | None) -> None:
    """Fetch into `path`, going on where an earlier attempt stopped; only a whole file is kept."""
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "zoo"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            if "text/html" in reply.headers.get("Content-Type", ""):
                raise BadWeights(f"{address} is a web page, not a file of weights")
            resumed = reply.status == 206
            total = int(reply.headers.get("Content-Length") or 0) + (done if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                while chunk := reply.read(1 << 20):
                    file.write(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:  # the part was whole, or is of another file
            part.unlink()
            return _download(address, path, sha256)
        raise BadWeights(f"{address} cannot be fetched: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BadWeights(f"{address} cannot be fetched: {error}") from error
    if total and part.stat().st_size != total:
        raise BadWeights(
            f"{address} broke off at {part.stat().st_size} of {total} bytes; call again to go on"
        )
    try:
        _check_hash(part, address, sha256)
    except BadWeights:
        part.unlink()
        raise
    part.replace(path)


def _check_hash(path: Path, named: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise BadWeights(f"{named} has the sha256 {found}, expected {sha256}...")
