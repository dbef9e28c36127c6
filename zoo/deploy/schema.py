"""The schema of manifests: the type and range of each entry, and which entries must agree.

`check` is the only place where the content of a manifest is validated. Whoever reads a checked
manifest can rely on every entry in `RULES`. Does not import torch.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image

from zoo import runtimes
from zoo.deploy import publishing
from zoo.deploy.formats import FORMATS
from zoo.errors import BadInput

SCHEMA = "zoo.manifest/1"
TASKS = (
    "classification", "segmentation", "super-resolution", "restoration", "detection", "retrieval",
    "multi-label",
)  # fmt: skip
TO_IMAGES = ("super-resolution", "restoration")  # tasks whose output is an image
FITTED = ("segmentation", "detection")  # tasks that show a model the whole image, padded
POSTPROCESSING = {
    "classification": "softmax",
    "segmentation": "argmax",
    "detection": "nms",
    "multi-label": "sigmoid",
}
DETECTION_ROW = 6  # numbers of a detection: corners, score, class
PRECISIONS = ("float32", "float16", "int8")
INTERPOLATIONS = tuple(kind.name.lower() for kind in Image.Resampling)
LARGEST = 1 << 16  # of a side, a batch or a number of channels
MOST_VALUES = 1 << 28  # of one image
_NUMBERED = re.compile(r"zoo\.manifest/(\d+)")
_HEX = re.compile(r"[0-9a-f]{64}")

ADVICE = "; export again"

Check = Callable[[Any], bool]


def check(content: Any) -> dict[str, Any]:
    """Return the content of a manifest if it follows the schema.

    Args:
        content: The decoded JSON.

    Raises:
        BadInput: An entry is missing, or has a value that cannot be right; one line.
    """
    stated = content.get("schema") if isinstance(content, dict) else None
    if stated != SCHEMA:
        found = _NUMBERED.fullmatch(stated) if isinstance(stated, str) else None
        if found and int(found[1][:9]) > int(SCHEMA.partition("/")[2]):
            raise BadInput(f"a newer version of this package wrote it ({stated}); update")
        raise BadInput(f"is not a manifest: its schema is {_shown(stated)}, not {SCHEMA!r}")
    for path, is_valid, expected in RULES:
        value = _get(content, path)
        if not is_valid(value):
            what = f"lacks {path}" if value is _MISSING else f"says {path}: {_shown(value)}"
            raise BadInput(f"{what}, but it must be {expected}{ADVICE}")
    for problem in _disagreements(content):
        raise BadInput(problem + ADVICE)
    return content


def steps(task: str, takes: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `input` that say how an image is brought to its size.

    Args:
        task: One of `TASKS`.
        takes: `size`, `crop_pct`, `interpolation`, `mean`, `channels` and `normalised_inside` of
            `input`.
    """
    size = takes["size"]
    if len(size) != 3 or task in TO_IMAGES:
        is_cropped = task in ("classification", "multi-label")
        kind = "crop" if is_cropped else "fit" if task in FITTED else None
        return {"resize": kind}
    every = {"antialias": takes["interpolation"] != "nearest", "exif_orientation": "applied"}
    if task in FITTED:
        mean = takes["mean"] or (takes["normalised_inside"] or {}).get("mean") or [0.5] * size[0]
        colour = [round(255 * value) for value in mean]
        colour = colour[::-1] if takes["channels"] == "BGR" else colour  # of the image, RGB
        pad = {"pad": "right and bottom", "pad_colour": colour}
        return {"resize": "fit", "resize_to_fit": size[1:], "rounding": "nearest", **pad, **every}
    sides = [math.floor(side / (takes["crop_pct"] or 1.0)) for side in size[1:]]
    crop = {"crop": "centre", **every}
    if sides[0] == sides[1]:
        return {"resize": "crop", "resize_shorter": sides[0], "rounding": "floor", **crop}
    return {"resize": "crop", "resize_to_cover": sides, "rounding": "nearest", **crop}


_MISSING = object()


def _get(content: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(content, dict) or key not in content:
            return _MISSING
        content = content[key]
    return content


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_whole(value: Any, least: int = 1, most: int = LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e30 < value < 1e30  # also false for NaN


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and bool(_HEX.fullmatch(value))


def _is_axis(value: Any) -> bool:
    return _is_whole(value) or _is_text(value)


def _list_of(is_valid: Check, *lengths: int) -> Check:
    return lambda value: (
        isinstance(value, list)
        and (len(value) in lengths if lengths else bool(value))
        and all(map(is_valid, value))
    )


def _table_of(is_valid: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(is_valid, value.values()))


def _one_of(choices: Iterable[object]) -> Check:
    allowed = list(choices)
    return lambda value: (
        any(value is other or value == other for other in allowed) and not (isinstance(value, bool))
    )


def _or_null(is_valid: Check) -> Check:
    return lambda value: value is None or is_valid(value)


def _optional(is_valid: Check) -> Check:
    return lambda value: value is _MISSING or is_valid(value)


def _is_file_list(value: Any) -> bool:
    """Return whether a value has the sha256 of files inside the folder, by their paths."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and all(map(publishing.is_bare, name.split("/"))) and _is_digest(sha)
        for name, sha in value.items()
    )


def _is_output(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("name"))
        and _list_of(_is_axis)(value.get("shape"))
        and (value.get("meaning") is None or _is_text(value["meaning"]))
    )


# Mean and std of values in 0..1. A far larger one would make all images equal.
_is_statistic = _or_null(_list_of(lambda value: _is_number(value) and abs(value) <= 1e3))
_is_spread = _or_null(_list_of(lambda value: _is_number(value) and 1e-6 <= value <= 1e3))
_count = _optional(lambda value: _is_whole(value, 0, 1 << 62))

# Path of an entry, what it may contain, and the same in words.
RULES: tuple[tuple[str, Check, str], ...] = (
    ("format", _one_of(FORMATS), f"one of {', '.join(FORMATS)}"),
    ("artefact.file", publishing.is_bare, "the name of a file, without a folder"),
    ("artefact.sha256", _is_digest, "64 hexadecimal digits"),
    ("artefact.bytes", lambda n: _is_whole(n, 1, 1 << 62), "a positive integer"),
    ("artefact.parts", _optional(_is_file_list), "the sha256 of further files by name"),
    ("artefact.opset", _count, "an integer"),
    ("artefact.nodes", _count, "an integer"),
    ("model.name", _or_null(_is_text), "a name or null"),
    ("model.args", lambda value: isinstance(value, dict), "a table"),
    ("model.class", _is_text, "a name"),
    ("model.num_classes", _or_null(lambda n: _is_whole(n, 0, 1 << 31)), "an integer or null"),
    ("model.fused", lambda value: isinstance(value, bool), "true or false"),
    ("weights.file", _or_null(_is_text), "a name or null"),
    ("weights.sha256", _or_null(_is_digest), "64 hexadecimal digits or null"),
    ("weights.state_sha256", _is_digest, "64 hexadecimal digits"),
    ("task", _one_of(TASKS), f"one of {', '.join(TASKS)}"),
    ("class_names", _or_null(_list_of(_is_text)), "names or null"),
    ("data", _or_null(lambda v: isinstance(v, dict) and _is_text(v.get("name"))),
     "a table with a name, or null"),
    ("precision", _one_of(PRECISIONS), f"one of {', '.join(PRECISIONS)}"),
    ("input.name", _is_text, "a name"),
    ("input.shape", _list_of(_is_axis, 4, 5), "B C H W or B C D H W"),
    ("input.size", _list_of(_is_whole, 3, 4), "C H W or C D H W, positive integers"),
    ("input.multiple", _optional(_is_whole), "a positive integer"),
    ("input.layout", _one_of(("NCHW", "NCDHW")), "NCHW or NCDHW"),
    ("input.dtype", _one_of(("uint8", "float32")), "uint8 or float32"),
    ("input.channels", _one_of(("RGB", "BGR", "grey", None)), "RGB, BGR, grey or null"),
    ("input.range", lambda value: value in ([0, 255], [0, 1]), "[0, 255] or [0, 1]"),
    ("input.mean", _is_statistic, "one number per channel, or null"),
    ("input.std", _is_spread, "one positive number per channel, or null"),
    ("input.normalised_inside", _or_null(lambda value: isinstance(value, dict)
     and set(value) == {"mean", "std"} and _is_statistic(value["mean"])
     and _is_spread(value["std"])), "mean and std of each channel, or null"),
    ("input.interpolation", _or_null(_one_of(INTERPOLATIONS)),
     f"one of {', '.join(INTERPOLATIONS)}, or null"),
    ("input.crop_pct", _or_null(lambda value: _is_number(value) and 0 < value <= 1),
     "above 0 and at most 1, or null"),
    ("input.resize", _one_of(("crop", "fit", None)), "crop, fit or null"),
    ("outputs", _list_of(_is_output), "name and shape of each output"),
    ("postprocessing", _one_of((*POSTPROCESSING.values(), None)),
     "softmax, argmax, nms, sigmoid or null"),
    ("temperature", _optional(lambda value: _is_number(value) and 0.01 <= value <= 100),
     "a number from 0.01 to 100"),
    ("comparison.runtime", _or_null(_one_of(runtimes.NAMES)),
     f"one of {', '.join(runtimes.NAMES)}, or null"),
    ("comparison.proven", lambda value: isinstance(value, bool), "true or false"),
    ("versions", _table_of(_is_text), "the version of each package"),
    ("date", _is_text, "a date"),
    ("quantization", _optional(lambda value: isinstance(value, dict)), "a table"),
)  # fmt: skip


def _disagreements(content: dict[str, Any]) -> Iterable[str]:
    """Yield how entries contradict each other."""
    made, takes = content["artefact"], content["input"]
    kind = FORMATS[content["format"]]
    if not made["file"].endswith(kind.suffix):
        yield f"says format: {content['format']}, but artefact.file does not end in {kind.suffix}"
    if content["format"] == "onnx" and made.get("parts"):
        yield "says artefact.parts, but an ONNX file has no further files"
    shape, size = takes["shape"], takes["size"]
    if len(shape) != len(size) + 1 or any(
        isinstance(n, int) and n != m for n, m in zip(shape[1:], size, strict=True)
    ):
        yield f"says input.size: {size}, which does not fit input.shape: {shape}"
        return
    if math.prod(size) > MOST_VALUES:
        yield f"says input.size: {size}, more than any image needs"
        return
    if takes["layout"] != ("NCHW" if len(shape) == 4 else "NCDHW"):
        yield f"says input.layout: {takes['layout']}, which does not fit input.shape: {shape}"
    if takes["channels"] not in {1: ("grey",), 3: ("RGB", "BGR")}.get(size[0], (None,)):
        yield f"says input.channels: {takes['channels']}, but input.size has {size[0]} channels"
    if any(side % takes.get("multiple", 1) for side in size[1:]):
        yield f"says input.multiple: {takes['multiple']}, which does not divide input.size: {size}"
    yield from _statistics(takes, size[0])
    if content["task"] not in (*FITTED, *TO_IMAGES) and _scaled(size, takes["crop_pct"]) > LARGEST:
        yield f"says input.crop_pct: {takes['crop_pct']}, too small for images of {size}"
        return
    expected = steps(content["task"], takes)
    for key in ("resize", "resize_shorter", "resize_to_cover", "resize_to_fit", "rounding", "crop",
                "pad", "pad_colour", "antialias", "exif_orientation"):  # fmt: skip
        if key in takes and takes[key] != expected.get(key):
            yield f"says input.{key}: {_shown(takes[key])}, but it must be {expected.get(key)}"
    yield from _classes(content)


def _scaled(size: list[int], crop_pct: float | None) -> float:
    return max(size[1:]) / (crop_pct or 1.0)


def _statistics(takes: dict[str, Any], channels: int) -> Iterable[str]:
    """Yield how mean and std contradict the type of the input."""
    inside = takes["normalised_inside"]
    as_bytes = takes["dtype"] == "uint8"
    if as_bytes != (inside is not None) or (as_bytes and (takes["mean"] or takes["std"])):
        yield f"says input.dtype: {takes['dtype']}, which does not fit its mean and std"
    if takes["range"] != ([0, 255] if as_bytes else [0, 1]):
        yield f"says input.range: {takes['range']}, which does not fit input.dtype"
    for name, table in (("input", takes), ("input.normalised_inside", inside or {})):
        if (table.get("mean") is None) != (table.get("std") is None):
            yield f"says only one of {name}.mean and {name}.std"
        for key in ("mean", "std"):
            if table.get(key) is not None and len(table[key]) != channels:
                shown = _shown(table[key])
                yield f"says {name}.{key}: {shown}, but the input has {channels} channels"


def _classes(content: dict[str, Any]) -> Iterable[str]:
    """Yield how task, classes and outputs contradict each other."""
    task, names, count = content["task"], content["class_names"], content["model"]["num_classes"]
    if content["postprocessing"] not in (None, POSTPROCESSING.get(task)):
        yield f"says postprocessing: {content['postprocessing']}, which does not fit task: {task}"
    if task == "segmentation" and count == 1:
        count = 2  # one logit decides between two classes
    if names is not None and count is not None and len(names) != count:
        yield f"says {len(names)} class_names, but model.num_classes is {count}"
    if task in TO_IMAGES or content["postprocessing"] == "argmax":
        return
    shape = content["outputs"][0]["shape"]
    if task == "detection":
        number = len(names) if names is not None else count
        row = DETECTION_ROW if content["postprocessing"] else None if number is None else 4 + number
        if len(shape) != 3 or (row is not None and shape[2] != row):
            yield f"says outputs[0].shape: {shape}, which does not fit {number} classes"
        return
    scores = shape[1] if len(shape) > 1 else None
    allowed = {len(names)} if names is not None else {count} if count else {scores}
    allowed |= {1} if task == "segmentation" else set()  # one logit decides between two classes
    if len(content["outputs"]) == 1 and scores not in allowed:
        number = len(names) if names is not None else count
        yield f"says outputs[0].shape: {shape}, which does not fit {number} classes"
