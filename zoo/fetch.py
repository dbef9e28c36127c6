"""Find weights: on disk, in the cache, in the hub's cache, or on a server."""

import hashlib
import re
import urllib.parse
from pathlib import Path

from filelock import FileLock

from zoo import hub_files, tensor_files
from zoo.cache import cache_folder
from zoo.download import Sums, checked_address, download, unreachable
from zoo.errors import BadWeights, first_line, shown

# File names that say nothing about the model: a file of that name may belong to any.
_GENERIC = {"model", "pytorch_model", "checkpoint", "weights", "net", "best", "last", "download"}


def is_address(source: str) -> bool:
    """Return whether a source is fetched, not a file: `https://`, `hf:`, `hf-hub:`, `gdrive:`."""
    if hub_files.is_repository(source):
        return True
    return re.match(r"https?://|hf:|gdrive:", source, re.IGNORECASE) is not None


def local_file(
    source: str,
    sha256: str | None = None,
    which: str = "best",
    *,
    git_sha1: str | None = None,
    cache_dir: str | Path | None = None,
    refresh: bool = False,
) -> Path:
    """Return the path of a file of weights, downloading it into the cache if necessary.

    A downloaded file is read before it gets its final name, so what cannot be read is not kept. A
    file that torch.hub or timm stored under the name in the address is taken, too, if it fits.

    Args:
        source: A file, a run folder, `https://...`, `hf:owner/name/file` or `gdrive:id`.
        sha256: Expected hash; its first digits are enough.
        which: Checkpoint of a run folder: `"best"`, or `"last"`.
        git_sha1: Expected name of the file's blob in git.
        cache_dir: Folder of downloaded files; None for that of torch.hub.
        refresh: Download the file again, although it is in the cache.

    Raises:
        BadInput: A checksum is malformed.
        BadWeights: The address cannot be fetched, the file has another hash, or the run folder
            contains no checkpoint.
    """
    sums = Sums(sha256, git_sha1)
    if not source.strip():
        raise BadWeights(
            "the source of the weights is empty; give a file, a run folder, or an address"
        )
    if not is_address(source):
        path = _on_disk(source, which)
        if sums and path.is_file() and (misfit := sums.misfit(path)):
            raise BadWeights(f"{shown(path)} {misfit}")
        return path
    folder = cache_folder(cache_dir)
    path = folder / cache_name(source)
    if source.startswith("hf:"):
        if path.is_file() and not refresh and not sums.misfit(path):
            return path  # put there by hand
        return _from_hub(source, sums, path, cache_dir, refresh)
    address = checked_address(source)
    name = Path(urllib.parse.urlsplit(address).path).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # another process may be downloading it
            if not refresh:
                for candidate in (path, folder / name[:200]):
                    if _is_usable(candidate, path, sums):
                        return candidate
            download(source, address, path, sums)
    except OSError as error:
        if not refresh and _is_usable(path, path, sums):
            return path  # a cache that can only be read
        raise BadWeights(
            f"the cache {shown(folder)} cannot be written ({error.strerror or first_line(error)});"
            " set TORCH_HOME to another folder"
        ) from error
    return path


def in_cache(source: str, sha256: str | None = None, *, git_sha1: str | None = None) -> Path | None:
    """Return the file that `local_file` would take without a download; None if there is none."""
    folder, sums = cache_folder(), Sums(sha256, git_sha1)
    path = folder / cache_name(source)
    candidates = [path]
    if source.startswith("hf:") and source.count("/") >= 2:
        from huggingface_hub import try_to_load_from_cache

        owner, repository, file = source.removeprefix("hf:").split("/", 2)
        found = try_to_load_from_cache(f"{owner}/{repository}", file)
        candidates += [Path(found)] if isinstance(found, str) else []
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    if not source.startswith("gdrive:"):
        candidates.append(folder / Path(urllib.parse.urlsplit(source).path).name[:200])
    return next((one for one in candidates if _is_usable(one, path, sums)), None)


def cache_name(source: str) -> str:
    """Return the name of a downloaded file; addresses that end in the same name stay apart."""
    tag = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    last = source.partition("?")[0].rstrip("/").rpartition("/")[2] or "weights"
    clean = re.sub(r"[^\w.+-]", "_", last.removeprefix("gdrive:"), flags=re.ASCII)
    return f"zoo-{tag}-{clean[-100:]}"


def _is_usable(candidate: Path, path: Path, sums: Sums) -> bool:
    """Return whether a file in the cache can be taken.

    Args:
        candidate: The file.
        path: Our own name for it; another name may be that of another file.
        sums: Expected checksums.
    """
    if not candidate.is_file():
        return False
    if sums:
        return not sums.misfit(candidate)
    if candidate == path:
        return True
    if candidate.name.partition(".")[0].lower() in _GENERIC:
        return False
    try:
        tensor_files.read(candidate)
    except BadWeights:
        return False
    return True


def _on_disk(source: str, which: str) -> Path:
    try:
        path = Path(source).expanduser()
        return _run_checkpoint(path, which) if path.is_dir() else path
    except (OSError, RuntimeError) as error:  # too long, not allowed, no such user
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadWeights(f"{shown(source)} cannot be read: {reason}") from error


def _run_checkpoint(folder: Path, which: str) -> Path:
    """Return the requested checkpoint of a run folder; `"last"` replaces a missing `"best"`.

    Args:
        which: `"best"` or `"last"`.

    Raises:
        BadWeights: The folder contains neither.
    """
    for name in (f"{which}.ckpt", "last.ckpt"):
        for place in (folder, folder / "checkpoints"):
            if (place / name).is_file():
                return place / name
    raise BadWeights(
        f"{shown(folder)} contains no checkpoint (best.ckpt or last.ckpt); give a run folder or a"
        " file"
    )


def _from_hub(
    source: str, sums: Sums, put_at: Path, cache_dir: str | Path | None, refresh: bool
) -> Path:
    name = source.removeprefix("hf:")
    parts = name.split("/", 2)
    if len(parts) < 3 or not all(parts) or not name.isprintable() or ".." in name.split("/"):
        raise BadWeights(f"{shown(source)} is incomplete; give hf:owner/name/file")
    owner, repository, file = parts
    try:
        path = hub_files.fetch(f"{owner}/{repository}", file, cache_dir=cache_dir, refresh=refresh)
    except hub_files.HubProblem as error:
        page = f"https://huggingface.co/{owner}/{repository}/resolve/main/{file}"
        raise unreachable(source, str(error), put_at, page) from error
    if misfit := sums.misfit(path):
        raise BadWeights(f"{source} {misfit}")
    return path
