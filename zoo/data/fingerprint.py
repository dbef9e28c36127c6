"""What identifies the images of a split, to notice when a run is resumed on other data."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zoo.data.holdout import position
from zoo.data.listing import shortened

FILES = 1000  # files of a split whose content is compared
HEAD = 65536  # bytes of each

Fingerprint = Mapping[str, Any]


def of_source(source: Any, class_names: list[str] | None) -> dict[str, Any]:
    """Return the fingerprint of a split, as plain values.

    It has the number of images (also of each class, if each image has one), a hash of all keys and
    labels, and a hash of the first bytes of up to `FILES` files, evenly spread over the classes.

    Args:
        source: The images of the split.
        class_names: Names of the classes in order, if known.
    """
    keys = [source.key(index) for index in range(len(source))]
    labels = getattr(source, "labels", None) or [0] * len(keys)
    classes = Counter(int(label) for label in labels)
    lines = sorted(f"{label} {key}" for label, key in zip(labels, keys, strict=True))
    found: dict[str, Any] = {
        "images": len(keys),
        "names": _hash("\n".join(lines).encode(errors="surrogateescape")),
    }
    if getattr(source, "labels", None) is not None:
        found["classes"] = {
            class_names[label] if class_names else str(label): count
            for label, count in sorted(classes.items())
        }
    found["content"] = _content(source, keys, labels)
    return found


def of_shards(reader: Any) -> dict[str, Any]:
    """Return the fingerprint of a split that is read from shards."""
    names = [str(name) for name in reader.split_info.filenames]
    return {"images": int(reader.num_samples), "names": _hash("\n".join(names).encode())}


def differences(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> str:
    """Return in words how the splits differ; empty if they do not.

    Args:
        before: Fingerprint of each split when the run began.
        now: Fingerprint of each split today.
    """
    for split, old in before.items():
        new = now.get(split, {})
        if old.get("classes") != new.get("classes"):
            changes = _other_classes(old.get("classes") or {}, new.get("classes") or {})
            return f"split {split} has {changes}"
        if old["images"] != new.get("images"):
            return f"split {split} has {new.get('images')} images instead of {old['images']}"
        if old["names"] != new.get("names"):
            return f"split {split} has files of other names"
        if old.get("content") != new.get("content"):
            return f"files of split {split} have other contents (exchanged or edited)"
    return ""


def _other_classes(old: Mapping[str, int], new: Mapping[str, int]) -> str:
    gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
    parts = [f"no class {shortened(gone)}"] if gone else []
    parts += [f"the new class {shortened(added)}"] if added else []
    if not parts:
        changed = [n for n in new if new[n] != old[n]]
        parts = [f"{new[n]} images of class {n} instead of {old[n]}" for n in changed[:3]]
    return " and ".join(parts)


def _content(source: Any, keys: list[str], labels: Any) -> str:
    """Return a hash of the beginnings of some files, chosen by their keys alone."""
    members: dict[int, list[tuple[float, int]]] = {}
    for index, key in enumerate(keys):
        members.setdefault(int(labels[index]), []).append((position(key), index))
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
