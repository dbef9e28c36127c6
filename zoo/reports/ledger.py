"""The ledger: which published weights were run, with which result, and which never.

`zoo/facts/ledger.json` comes with the package; `zoo verify` adds to a ledger of its own beside the
downloaded files, or to the file that it is given. An entry belongs to one file of weights,
`name.tag`, and has up to two records, each with the date and the SHA-256 of the file:

    accuracy  data, images, metric, value, low, high (95 % interval), size, interpolation, crop_pct
    outputs   for one picture: shape, mean, std, probe, first values, the classes on top
"""

import datetime
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.cache import cache_folder
from zoo.errors import BadInput
from zoo.reports import figures

FORMAT = "zoo.ledger/1"
FILE = "ledger.json"
PICTURE = "china.jpg"  # of scikit-learn
METRICS = {"top1": "top-1", "mean_iou": "mean IoU", "psnr": "PSNR"}

Entry = dict[str, dict[str, Any]]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _is_share(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 1)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**53


def _numbers(count: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and 1 <= len(value) <= count and all(map(_is_number, value))
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.date.fromisoformat(value))
    except ValueError:
        return False


def _is_top(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and value != [] and all(map(_numbers(2), value))


_FILE = {
    "date": _is_date,
    "sha256": lambda v: isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v) is not None,
}
_SCHEMA: dict[str, dict[str, Callable[[Any], bool]]] = {
    "accuracy": {
        **_FILE,
        "data": _is_name,
        "images": _is_count,
        "metric": lambda value: isinstance(value, str) and value in METRICS,
        "value": _is_number,
        "low": _is_share,
        "high": _is_share,
        "size": _numbers(3),
        "interpolation": _is_name,
        "crop_pct": _is_number,
    },
    "outputs": {
        **_FILE,
        "picture": lambda value: value == PICTURE,
        "shape": _numbers(6),
        **dict.fromkeys(("mean", "std", "probe"), _is_number),
        "first": _numbers(8),
        "top": _is_top,
        "torch": _is_name,
    },
}


def packaged_file() -> Path:
    """Return the ledger that comes with the package."""
    return Path(str(resources.files("zoo.facts") / FILE))


def own_file() -> Path:
    """Return the ledger of this machine, beside the downloaded files."""
    return cache_folder() / "zoo-ledger.json"


def read(path: Path) -> dict[str, Entry]:
    """Return the entries of a ledger by `name.tag`; a missing file has none.

    Raises:
        BadInput: The file cannot be read, or an entry does not follow the schema.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"the ledger {path} cannot be read ({type(error).__name__})") from error
    fault = _fault(content)
    if fault:
        raise BadInput(f"the ledger {path} is damaged: {fault}; delete it, or use another one")
    return content["weights"]


def _fault(content: Any) -> str:
    """Return what is wrong with the content of a ledger; "" if nothing is."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return f"its format is not {FORMAT}"
    weights = content.get("weights")
    if not isinstance(weights, dict):
        return "weights is not an object"
    for name, entry in weights.items():
        if not isinstance(entry, dict) or not entry.keys() <= _SCHEMA.keys():
            return f"{name[:100]!r} has other records than {' and '.join(_SCHEMA)}"
        for kind, record in entry.items():
            rules = _SCHEMA[kind]
            if not isinstance(record, dict) or record.keys() != rules.keys():
                return f"{kind} of {name[:100]!r} does not have the keys {', '.join(rules)}"
            for key, fits in rules.items():
                if not fits(record[key]):
                    return f"{kind}.{key} of {name[:100]!r} is {str(record[key])[:40]!r}"
    return ""


def add(path: Path, name: str, **found: Mapping[str, Any]) -> None:
    """Add records to the entry of a file of weights; they replace older ones of the same kind.

    Args:
        path: The ledger.
        name: `name.tag`.
        **found: `accuracy` or `outputs`.

    Raises:
        BadInput: The ledger is damaged or cannot be written, or a record is invalid.
    """
    content = read(path)
    content[name] = {**content.get(name, {}), **{kind: dict(r) for kind, r in found.items()}}
    whole = {"format": FORMAT, "weights": dict(sorted(content.items()))}
    if fault := _fault(whole):
        raise BadInput(f"this cannot be recorded: {fault}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(
            f"the ledger {path} cannot be written ({error.strerror}); give another with --ledger"
        ) from error


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, changed: int) -> dict[str, Entry]:
    """Return the entries of a ledger that last changed at a time in ns."""
    return read(path)


def _current(path: Path) -> dict[str, Entry]:
    try:
        return _read_once(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


def entries(*, own: bool = True) -> dict[str, Entry]:
    """Return what is known of all files: of the package, and (with `own`) of this machine.

    Of two records of a kind the later one counts.
    """
    merged = {name: dict(entry) for name, entry in _current(packaged_file()).items()}
    for name, entry in (_current(own_file()) if own else {}).items():
        known = merged.setdefault(name, {})
        for kind, record in entry.items():
            if kind not in known or known[kind]["date"] <= record["date"]:
                known[kind] = record
    return merged


def claim(name: str, record: Mapping[str, Any]) -> float | None:
    """Return what the sources claim for a metric of a model; None if they claim nothing.

    Args:
        name: Name of the model.
        record: An `accuracy`; only ImageNet is compared for top-1.
    """
    if record["metric"] == "top1":
        top1 = figures.imagenet_top1(name) if record["data"] == "imagenet" else None
        return None if top1 is None else top1 / 100
    if record["metric"] == "mean_iou":
        rows = registry.get_spec(name).facts.get("published", [])
        return max((row["miou"] / 100 for row in rows if "miou" in row), default=None)
    return None


def lines(spec: registry.ModelSpec, known: Mapping[str, Entry]) -> Iterator[str]:
    """Yield what is known of each file of a model's weights, in words.

    Args:
        spec: The model.
        known: The result of `entries`.
    """
    for weights in spec.weights:
        tag = weights.get("tag", "file")
        entry = known.get(f"{spec.name}.{tag}", {})
        found = []
        if "accuracy" in entry:
            found.append(accuracy_in_words(spec.name, entry["accuracy"]))
        elif "outputs" in entry:
            found.append("accuracy never verified")
        if "outputs" in entry:
            record = entry["outputs"]
            found.append(f"outputs for {PICTURE} recorded ({_file(record)})")
        yield f"{tag}: {'; '.join(found) or 'never'}"


def accuracy_in_words(name: str, record: Mapping[str, Any]) -> str:
    """Return an accuracy with its interval, how it was measured, and what the sources claim."""
    is_psnr = record["metric"] == "psnr"
    value = f"{record['value']:.2f} dB" if is_psnr else f"{100 * record['value']:.2f} %"
    text = f"{METRICS[record['metric']]} {value}"
    ends = (record["low"], record["high"])
    if None not in ends:
        text += f" (95 %: {100 * ends[0]:.2f} to {100 * ends[1]:.2f})"
    size = " x ".join(map(str, record["size"][1:]))
    text += (
        f" of {record['images']:,} images of {record['data']}, {size}, {record['interpolation']},"
        f" crop {record['crop_pct']:g} ({_file(record)})"
    )
    claimed = claim(name, record)
    if claimed is None:
        return text
    text += f", claimed {100 * claimed:.2f} %"
    if None in ends:
        return text
    inside = ends[0] <= claimed <= ends[1]
    return text + (", inside the interval" if inside else ", outside the interval")


def _file(record: Mapping[str, Any]) -> str:
    return f"{record['date']}, sha256 {record['sha256'][:8]}"


def in_short(name: str, known: Mapping[str, Entry]) -> str:
    """Return what a table says of a model: its accuracy, `outputs`, `never`, or "" without weights.

    Args:
        name: Name of the model.
        known: The result of `entries`.
    """
    spec = registry.get_spec(name) if registry.is_model(name) else None
    if spec is None or not spec.weights:
        return ""
    records = [known.get(f"{spec.name}.{w.get('tag', 'file')}", {}) for w in spec.weights]
    accuracies = [record["accuracy"] for record in records if "accuracy" in record]
    if accuracies:
        best = accuracies[0]  # of the file that pretrained=True takes, if that was verified
        unit = " dB" if best["metric"] == "psnr" else " %"
        value = best["value"] if unit == " dB" else 100 * best["value"]
        return f"{METRICS[best['metric']]} {value:.2f}{unit}"
    return "outputs" if any(records) else "never"


def counted(known: Mapping[str, Entry], names: list[str]) -> tuple[int, int, int]:
    """Return the number of files of weights, of those with an accuracy, and with outputs only."""
    keys = [
        f"{name}.{weights.get('tag', 'file')}"
        for name in names
        for weights in registry.get_spec(name).weights
    ]
    accurate = sum("accuracy" in known.get(key, {}) for key in keys)
    run = sum(bool(known.get(key)) for key in keys)
    return len(keys), accurate, run - accurate
