"""What a checkpoint of `train.py` must contain: every reader checks it here, before using it.

Evaluation and export need the weights, the model and the data; other entries may be missing, but
must be valid. Resuming needs everything. A new entry of a checkpoint is added to the tables below.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights

FORMAT = "zoo.checkpoint/1"
LARGEST = 2**53  # of any count
CHECKSUM = "checksum"

Rule = Callable[[Any], str | None]  # returns what the value must be, or None if it is that


def _must_be(requirement: str, is_valid: Callable[[Any], bool]) -> Rule:
    return lambda value: None if is_valid(value) else requirement


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items()
    )


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_valid, value))


_COUNT = _must_be("a whole number, at least 0", _is_count)
_POSITIVE = _must_be("a whole number, at least 1", lambda value: _is_count(value, 1))
_SCORE = _must_be("a number", lambda value: type(value) in (int, float) and value == value)
_TEXT = _must_be("text", lambda value: isinstance(value, str) and value != "")
_TABLE = _must_be("a table", _is_table)
_STATE = _must_be("a table of tensors", _is_state)
_WEIGHTS = _must_be("a table of tensors", lambda value: _is_state(value) and len(value) > 0)
_SIZE = _must_be(
    "three whole numbers, channels, height and width",
    lambda value: _is_list(value, lambda side: _is_count(side, 1)) and len(value) == 3,
)
_NAMES = _must_be(
    "a list of names, or null",
    lambda value: value is None or _is_list(value, lambda name: isinstance(name, str)),
)

_SPLIT: dict[str, Any] = {  # a fingerprint of `zoo.data.fingerprint`
    "images": _COUNT,
    "names": _TEXT,
    "content?": _TEXT,
    "classes?": _must_be("a list of whole numbers", lambda value: _is_list(value, _is_count)),
}

# Tables of required entries; a name with a question mark may be missing.
_EVALUATION: dict[str, Any] = {
    "state_dict": _WEIGHTS,
    "state_dict_ema?": _WEIGHTS,
    "model": _must_be(
        "a table with a name", lambda v: _is_table(v) and _TEXT(v.get("name")) is None
    ),
    "data": {
        "num_classes": _POSITIVE,
        "class_names": _NAMES,
        "splits?": {"train?": _SPLIT, "val?": _SPLIT},
        "preprocessing": {
            "size": _SIZE,
            "crop_pct": _must_be("a number above 0", lambda v: _is_number(v) and v > 0),
            "interpolation": _TEXT,
            "mean": _must_be("a list of numbers", lambda v: _is_list(v, _is_number)),
            "std": _must_be(
                "a list of numbers above 0",
                lambda v: _is_list(v, lambda entry: _is_number(entry) and entry > 0),
            ),
            "channel_order?": _must_be("RGB or BGR", lambda v: v in ("RGB", "BGR", None)),
        },
    },
    "qat?": {
        "scheme": _TEXT,
        "fused": _must_be("true or false", lambda v: isinstance(v, bool)),
        "input_size": _SIZE,
    },
    "adapters?": {
        "kind": _TEXT,
        "rank": _POSITIVE,
        "scale": _must_be("a number above 0", lambda v: _is_number(v) and v > 0),
        "base": {
            "source": _TEXT,
            "sha256": _must_be(
                "64 hexadecimal digits",
                lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None,
            ),
        },
    },
}
_RESUMING: dict[str, Any] = {
    "config": {"model": _TABLE, "data": _TABLE, "train": _TABLE},
    "versions": _TABLE,
    "metrics": _must_be(
        "a table of numbers",
        lambda v: _is_table(v) and all(_SCORE(entry) is None for entry in v.values()),
    ),
    "progress": {
        "epoch": _COUNT,
        "batch": _COUNT,
        "update": _COUNT,
        "world_size": _POSITIVE,
        "loss_sums": _must_be("a list of numbers", lambda v: _is_list(v, _is_number)),
        "best": _SCORE,
        "best_epoch": _COUNT,
        "seconds?": _must_be("a number, at least 0", lambda v: _is_number(v) and v >= 0),
    },
    "optimizer": {
        "state": _must_be("a table", lambda v: isinstance(v, dict)),
        "param_groups": _must_be("a list of tables", lambda v: _is_list(v, _is_table)),
    },
    "scaler": _TABLE,
    "unmerged?": _must_be(
        "a table of tables of tensors", lambda v: _is_table(v) and all(map(_is_state, v.values()))
    ),
    "loss?": _STATE,
    "method?": _TABLE,
}


# Settings of the group `model` that are not arguments of the finished model.
_NOT_OF_THE_MODEL = {"pretrained", "checkpoint_path", "base", "kwargs"}


def is_run_checkpoint(content: Mapping[str, Any]) -> bool:
    """Return whether `train.py`, perhaps of another version, wrote `content`."""
    written = content.get("format")
    if isinstance(written, str) and written.startswith(FORMAT.split("/")[0]):
        return True
    return {"model", "data", "state_dict", "progress"} <= content.keys()


def check(content: Mapping[str, Any], source: object, *, resumes: bool = False) -> None:
    """Raise `BadWeights` unless a checkpoint of `train.py` has all entries, each with valid values.

    Args:
        content: The checkpoint.
        source: Its file, for messages.
        resumes: Whether the run will be continued, which needs every entry.
    """
    _check_format(content.get("format"), source)
    table: dict[str, Any] = {"format": _TEXT, **_EVALUATION, f"{CHECKSUM}?": _TEXT}
    for name, rule in _RESUMING.items():
        table[name if resumes else f"{name.rstrip('?')}?"] = rule
    if not resumes:  # a hand-made checkpoint may have fewer groups
        table["config?"] = {"model?": _TABLE, "data?": _TABLE, "train?": _TABLE}
    problem = _table_problem(content, table) or _contradiction(content)
    if problem is None and content.get(CHECKSUM) not in (None, checksum(content)):
        problem = f"the content does not match its {CHECKSUM} (remove that entry after editing it)"
    if problem is not None:
        raise damaged(source, problem)


def checksum(content: Mapping[str, Any]) -> str:
    """Return a CRC-32 of all entries but the settings, which differ between equal runs."""
    entries = {key: value for key, value in content.items() if key not in (CHECKSUM, "config")}
    return f"crc32:{_crc(entries, 0):08x}"


def _crc(value: Any, crc: int) -> int:
    if isinstance(value, Tensor):
        crc = zlib.crc32(f"{value.dtype}{list(value.shape)}".encode(), crc)
        data = value.detach().cpu().contiguous()
        values: Any = data.reshape(-1).view(torch.uint8).numpy()
        return zlib.crc32(values, crc) if data.numel() else crc
    if isinstance(value, Mapping):
        for key, entry in value.items():
            crc = _crc(entry, zlib.crc32(repr(key).encode(), crc))
        return crc
    if isinstance(value, list | tuple):
        crc = zlib.crc32(f"{len(value)} entries".encode(), crc)
        for entry in value:
            crc = _crc(entry, crc)
        return crc
    text = f"{value:x}" if type(value) is int else repr(value)
    return zlib.crc32(text.encode("utf-8", "backslashreplace"), crc)


def damaged(source: object, problem: str) -> BadWeights:
    """Return the error for a checkpoint with a problem."""
    return BadWeights(
        f"{source} is a damaged checkpoint of train.py: {problem}; use another checkpoint of the"
        " run (best.ckpt or last.ckpt), or train again"
    )


def _check_format(written: Any, source: object) -> None:
    if written == FORMAT:
        return
    name, number = FORMAT.split("/")
    own, _, version = written.partition("/") if isinstance(written, str) else ("", "", "")
    if own != name or not version.isdecimal():
        raise damaged(source, f"format is {_shown(written)}, and must be {FORMAT}")
    age = "a newer" if int(version[:9]) > int(number) else "another"
    raise BadWeights(
        f"{source} was written by {age} version of this package (format {written[:40]}; this"
        f" version reads {FORMAT}); install that version: pip install -U zoo-vision"
    )


def _table_problem(content: Any, table: dict[str, Any], where: str = "") -> str | None:
    """Return what is wrong with a table of the checkpoint, or None."""
    if not isinstance(content, Mapping):
        return f"{where.rstrip('.')} is {_shown(content)}, and must be a table"
    known = set()
    for entry, rule in table.items():
        name = entry.rstrip("?")
        known.add(name)
        if name not in content:
            if entry == name:
                return f"{where}{name} is missing"
            continue
        value = content[name]
        if isinstance(rule, dict):
            problem = _table_problem(value, rule, f"{where}{name}.")
        else:
            required = rule(value)
            problem = required and f"{where}{name} is {_shown(value)}, and must be {required}"
        if problem:
            return problem
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        return (
            f"this version does not know its entry {where}{unknown[0][:60]}, which a newer version"
            " may have written"
        )
    return None


def _contradiction(content: Mapping[str, Any]) -> str | None:
    """Return two entries that contradict each other, or None."""
    model, data = content["model"], content["data"]
    channels = data["preprocessing"]["size"][0]
    comparisons: list[tuple[str, Any, str, Any]] = [
        ("model.in_chans", model.get("in_chans"), "the channels of data", channels),
    ]
    own = model.get("num_classes")
    if type(own) is not int or own != 1 or data["num_classes"] != 2:  # one logit for two classes
        comparisons.append(("model.num_classes", own, "data.num_classes", data["num_classes"]))
    if data["class_names"] is not None:
        names = len(data["class_names"])
        comparisons.append(("data.num_classes", data["num_classes"], "data.class_names", names))
    for key in ("mean", "std"):
        count = len(data["preprocessing"][key])
        comparisons.append((f"the length of data.preprocessing.{key}", count, "channels", channels))
    config = content.get("config", {})
    described = set(config.get("model", {})) - _NOT_OF_THE_MODEL
    if missing := described - model.keys():
        return f"model.{min(missing)} is missing"
    for key in described - {"num_classes", "in_chans"}:
        comparisons.append((f"model.{key}", model[key], "config", config["model"][key]))
    if (averaged := content.get("state_dict_ema")) is not None:
        layouts = [
            {key: (value.shape, value.dtype) for key, value in state.items()}
            for state in (content["state_dict"], averaged)
        ]
        if layouts[0] != layouts[1]:
            return "state_dict_ema has other tensors than state_dict"
    for left, a, right, b in comparisons:
        if a is not None and (type(a) is not type(b) or a != b):
            return f"{left} is {_shown(a)}, but {right} has {_shown(b)}"
    return _progress_contradiction(content)


def _progress_contradiction(content: Mapping[str, Any]) -> str | None:
    progress = content.get("progress")
    if progress is None:
        return None
    epochs = content.get("config", {}).get("train", {}).get("epochs")
    if type(epochs) is int and progress["epoch"] > epochs:
        return f"progress.epoch is {progress['epoch']}, but the run has {epochs} epochs"
    if progress["best_epoch"] > progress["epoch"]:
        return (
            f"progress.best_epoch is {progress['best_epoch']}, but only {progress['epoch']} epochs"
            " are complete"
        )
    selected_by = content.get("config", {}).get("train", {}).get("best")
    if progress["best_epoch"] and selected_by == "loss":  # negated, so that higher is better
        is_consistent = progress["best"] <= 0
    else:
        is_consistent = (progress["best_epoch"] == 0) == (progress["best"] == -1)
    if not is_consistent:
        return f"progress.best is {progress['best']} in epoch {progress['best_epoch']}"
    sums = len(progress["loss_sums"])
    if sums != (progress["world_size"] if progress["batch"] else 0):
        return f"progress.loss_sums has {sums} numbers"
    return None


def _shown(value: Any) -> str:
    """Return a value as a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a huge number"
    text = " ".join((repr(value) if isinstance(value, str) else str(value)).split())
    return text if len(text) <= 40 else f"{text[:37]}..."
