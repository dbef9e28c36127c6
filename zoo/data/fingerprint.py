"""What identifies the images of a split, to notice when a run is resumed on other data."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zoo.data.holdout import position

FILES = 1000  # files of a split whose content is compared
HEAD = 65536  # bytes of each

Fingerprint = Mapping[str, Any]


def of_source(source: Any, num_classes: int) -> dict[str, Any]:
    """Return the fingerprint of a split, as plain values.

    It has the number of images (also of each class, if each image has one), a hash of all keys and
    labels, and a hash of the first bytes of up to `FILES` files, evenly spread over the classes.

    Args:
        source: The images of the split.
        num_classes: Number of classes.
    """
    keys = [source.key(index) for index in range(len(source))]
    labels = getattr(source, "labels", None)
    numbers = [0] * len(keys) if labels is None else [int(label) for label in labels]
    lines = sorted(f"{number} {key}" for number, key in zip(numbers, keys, strict=True))
    found: dict[str, Any] = {
        "images": len(keys),
        "names": _hash("\n".join(lines).encode(errors="surrogateescape")),
        "content": _content(source, keys, numbers),
    }
    if labels is not None:
        counts = Counter(numbers)
        found["classes"] = [counts[number] for number in range(num_classes)]
    return found


def of_shards(reader: Any) -> dict[str, Any]:
    """Return the fingerprint of a split that is read from shards."""
    names = [str(name) for name in reader.split_info.filenames]
    return {"images": int(reader.num_samples), "names": _hash("\n".join(names).encode())}


def differences(
    before: Mapping[str, Fingerprint],
    now: Mapping[str, Fingerprint],
    class_names: Sequence[str] | None = None,
) -> str:
    """Return in words how the splits differ; empty if they do not.

    Args:
        before: Fingerprint of each split when the run began.
        now: Fingerprint of each split today, with the same classes.
        class_names: Names of the classes in order, if known.
    """
    for split, old in before.items():
        new = now.get(split, {})
        counts = zip(old.get("classes", ()), new.get("classes", ()), strict=False)
        for number, (past, present) in enumerate(counts):
            if past != present:
                name = class_names[number] if class_names else number
                return f"split {split} has {present} images of class {name} instead of {past}"
        if old["images"] != new.get("images"):
            return f"split {split} has {new.get('images')} images instead of {old['images']}"
        if old["names"] != new.get("names"):
            return f"split {split} has files of other names"
        if old.get("content") != new.get("content"):
            return f"files of split {split} have other contents (exchanged or edited)"
    return ""


def _content(source: Any, keys: list[str], labels: list[int]) -> str:
    """Return a hash of the beginnings of some files, chosen by their keys alone."""
    members: dict[int, list[tuple[float, int]]] = {}
    for index, key in enumerate(keys):
        members.setdefault(labels[index], []).append((position(key), index))
    most = max(1, FILES // max(1, len(members)))
    chosen = [i for label in sorted(members) for _, i in sorted(members[label])[:most]]
    paths = [path for index in chosen for path in source.files(index)]
    with ThreadPoolExecutor(8) as threads:
        return _hash(b"".join(threads.map(_beginning, paths)))


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(HEAD)).digest()
    except OSError:
        return b""


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
