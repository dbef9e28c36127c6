"""`zoo weights`: where published weights are, what is known of them, and whether they fit."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import BadWeights, ZooError

HELP = "published weights: address, size, licence, checksum and whether they are in the cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("names", nargs="*", help="models, name.tag, or globs; default: all models")
    parser.add_argument(
        "--check",
        action="store_true",
        help="fetch each file, load it strictly, print its SHA-256 and record it",
    )


def run(args: argparse.Namespace) -> None:
    """Print the weights of models, and check them if asked to.

    Raises:
        UnknownModel: A name is unknown.
        BadWeights: A file cannot be fetched, or does not fit; the others are checked all the same.
    """
    from zoo.commands import checked_weights

    known = checked_weights.read()
    checked, failed = 0, 0
    for spec in _specs(args.names):
        if not spec.weights:
            print(f"{spec.full_name}: its authors publish no weights")
        for entry in spec.weights:
            print(_described(spec, entry, known.get(entry.get("url", ""))))
            if args.check and "url" in entry:
                checked += 1
                failed += not _check(spec, entry)
    if args.check:
        print(f"{checked - failed} of {checked} files fit; recorded in {checked_weights.path()}")
    if failed:
        raise BadWeights(f"{failed} of {checked} files cannot be used; see the lines above")


def _specs(names: list[str]) -> Iterator[registry.ModelSpec]:
    """Yield the models that names and globs mean; a tag selects one checkpoint."""
    for name in names or ["*"]:
        found = registry.list_models(name) if any(sign in name for sign in "*?[") else [name]
        if not found:
            raise BadWeights(f"no model matches {name!r}; zoo list prints all names")
        for one in found:
            spec = registry.get_spec(one)
            if not registry.is_packaged(one):
                raise BadWeights(f"{one} is not a model of this package; its weights are elsewhere")
            yield spec


def _described(spec: registry.ModelSpec, entry: dict[str, Any], known: Any) -> str:
    """Return two lines: what is known of a checkpoint, and its address."""
    parts = [f"{spec.name}.{entry['tag']}", _size(spec, entry, known)]
    parts.append(str(entry.get("licence", "licence not stated")))
    for key in ("sha256", "git_sha1"):
        sums = (known or {}).get(key) or entry.get(key)
        parts += [f"{key} {str(sums)[:8]}"] if sums else []
    parts += [f"{entry['classes']} classes"] if "classes" in entry else []
    parts += ["without a classifier"] if not entry.get("head", True) else []
    if "url" in entry:
        parts.append(_cached(entry))
    else:
        parts.append("by hand: a program cannot fetch it")
    parts += [f"checked {known['date']}"] if known else []
    address = entry.get("url") or entry["page"]
    return f"{', '.join(parts)}\n    {address}"


def _size(spec: registry.ModelSpec, entry: dict[str, Any], known: Any) -> str:
    """Return the size of a file; without a record, that of its parameters in single precision."""
    if known:
        return f"{known['bytes'] / 1e6:.1f} MB"
    if "megabytes" in entry:
        return f"{entry['megabytes']} MB"
    return f"about {4 * spec.facts['params'] / 1e6:.0f} MB"


def _cached(entry: dict[str, Any]) -> str:
    from zoo.fetch import in_cache

    found = in_cache(entry["url"], entry.get("sha256"), git_sha1=entry.get("git_sha1"))
    return "not in the cache" if found is None else f"in the cache as {found.name}"


def _check(spec: registry.ModelSpec, entry: dict[str, Any]) -> bool:
    """Fetch a file, load it strictly, and record its checksum; print the result."""
    from zoo.build import fetch_published
    from zoo.commands import checked_weights, published_file
    from zoo.download import sha256_of

    try:
        path, content = fetch_published(spec, entry)
        published_file.load(spec, entry, content)
    except ZooError as error:
        print(f"    failed: {error}")
        return False
    sha256 = sha256_of(path)
    size = Path(path).stat().st_size
    checked_weights.record(entry["url"], sha256=sha256, size=size)
    print(f"    fits: {size:,} bytes, sha256 {sha256}")
    return True
