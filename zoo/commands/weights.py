"""`zoo weights`: where published weights are, what is known of them, and whether they fit."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
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
            print(_described(spec, entry, _row(spec, entry, known)))
            if args.check and "url" in entry:
                checked += 1
                failed += not _check(spec, entry)
    if args.check:
        print(f"{checked - failed} of {checked} files fit; recorded in {checked_weights.path()}")
    if failed:
        raise BadWeights(f"{failed} of {checked} files cannot be used; see the lines above")


def list_weights(names: str | Sequence[str] = ()) -> list[dict[str, Any]]:
    """List published files of weights and what is known of them, like `zoo weights`.

    Args:
        names: Models, `name.tag`, or globs; none for all models.

    Returns:
        For each file its `name` (with the tag), `url` (None if a program cannot fetch it), `page`,
        `licence`, `classes` (None: those of the model), `has_classifier`, `sha256` and `git_sha1`
        (which may be the first digits), `cached` (its path on this machine, or None), and, if
        `zoo weights --check` loaded it here, `bytes` and the date in `checked`.

    Raises:
        UnknownModel: A name is unknown.
        BadWeights: A glob matches nothing, or a model is not of this package.
    """
    from zoo.commands import checked_weights

    known = checked_weights.read()
    given = [names] if isinstance(names, str) else list(names)
    return [_row(spec, entry, known) for spec in _specs(given) for entry in spec.weights]


def _row(spec: registry.ModelSpec, entry: dict[str, Any], known: Mapping[str, Any]) -> dict:
    """Return what is known of a checkpoint.

    Args:
        spec: Its model.
        entry: Its facts.
        known: Files that were checked on this machine, by address.
    """
    checked = known.get(entry.get("url", ""), {})
    return {
        "name": f"{spec.name}.{entry['tag']}",
        "url": entry.get("url"),
        "page": entry.get("page"),
        "licence": entry.get("licence"),
        "classes": entry.get("classes"),
        "has_classifier": entry.get("head", True),
        "sha256": checked.get("sha256") or entry.get("sha256"),
        "git_sha1": entry.get("git_sha1"),
        "cached": _cached(entry),
        "bytes": checked.get("bytes"),
        "checked": checked.get("date"),
    }


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


def _described(spec: registry.ModelSpec, entry: dict[str, Any], row: dict[str, Any]) -> str:
    """Return two lines: what is known of a checkpoint, and its address."""
    parts = [row["name"], _size(spec, entry, row), str(row["licence"] or "licence not stated")]
    parts += [f"{key} {row[key][:8]}" for key in ("sha256", "git_sha1") if row[key]]
    parts += [f"{row['classes']} classes"] if row["classes"] is not None else []
    parts += ["without a classifier"] if not row["has_classifier"] else []
    if row["url"] is None:
        parts.append("by hand: a program cannot fetch it")
    else:
        cached = row["cached"]
        parts.append(f"in the cache as {Path(cached).name}" if cached else "not in the cache")
    parts += [f"checked {row['checked']}"] if row["checked"] else []
    return f"{', '.join(parts)}\n    {row['url'] or row['page']}"


def _size(spec: registry.ModelSpec, entry: dict[str, Any], row: dict[str, Any]) -> str:
    """Return the size of a file; without a record, that of its parameters in single precision."""
    if row["bytes"] is not None:
        return f"{row['bytes'] / 1e6:.1f} MB"
    if "megabytes" in entry:
        return f"{entry['megabytes']} MB"
    return f"about {4 * spec.facts['params'] / 1e6:.0f} MB"


def _cached(entry: dict[str, Any]) -> str | None:
    from zoo.fetch import in_cache

    if "url" not in entry:
        return None
    found = in_cache(entry["url"], entry.get("sha256"), git_sha1=entry.get("git_sha1"))
    return None if found is None else str(found)


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
