"""Find weights on disk, or download them into the cache and check their hash."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import torch
from filelock import FileLock

from zoo.errors import BadWeights, first_line


def local_file(source: str, sha256: str | None = None, which: str = "best") -> Path:
    """Return the path of a file of weights, downloading it into the cache if necessary.

    Args:
        source: A file, a run folder, `https://...` or `hf:owner/name/file`.
        sha256: Expected hash of a downloaded file; its first digits are enough.
        which: Checkpoint of a run folder: `"best"`, or `"last"`.

    Raises:
        BadWeights: The address cannot be fetched, the file has another hash, or the run folder
            contains no checkpoint.
    """
    if source.startswith("hf:"):
        return _from_hub(source.removeprefix("hf:"), sha256)
    if not source.startswith(("https://", "http://")):
        path = Path(source).expanduser()
        return _run_checkpoint(path, which) if path.is_dir() else path
    address = urllib.parse.urlsplit(source)
    if address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise BadWeights(f"{source}: weights are only fetched over https; give an https address")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    # The hash of the address keeps files of the same name from two servers apart.
    tag = hashlib.sha256(source.encode()).hexdigest()[:8]
    path = folder / f"zoo-{tag}-{Path(address.path).name or 'weights'}"
    with FileLock(f"{path}.lock"):  # another process may be downloading it
        if path.exists():
            _check_hash(path, f"{source}, cached as {path},", sha256)
        else:
            _download(source, path, sha256)
    return path


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
        f"{folder} contains no checkpoint (best.ckpt or last.ckpt); give a run folder or a file"
    )


def _from_hub(name: str, sha256: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    if name.count("/") < 2 or not all(name.split("/", 2)):
        raise BadWeights(f"hf:{name} is incomplete; give hf:owner/name/file")
    owner, repository, file = name.split("/", 2)
    try:
        path = Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the client raises its own errors, those of requests and OSError
        raise BadWeights(f"hf:{name} cannot be fetched: {first_line(error)}") from error
    _check_hash(path, f"hf:{name}", sha256)
    return path


def _download(address: str, path: Path, sha256: str | None) -> None:
    """Download into `path`, continuing an earlier attempt; only a complete file gets this name."""
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "zoo"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            if "text/html" in reply.headers.get("Content-Type", ""):
                raise BadWeights(f"{address} is a web page; give the address of the file")
            resumed = reply.status == 206
            total = int(reply.headers.get("Content-Length") or 0) + (done if resumed else 0)
            with part.open("ab" if resumed else "wb") as file:
                while chunk := reply.read(1 << 20):
                    file.write(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:  # the part was complete, or belongs to another file
            part.unlink()
            return _download(address, path, sha256)
        raise BadWeights(f"{address} cannot be fetched: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BadWeights(f"{address} cannot be fetched: {error}") from error
    if total and part.stat().st_size != total:
        raise BadWeights(
            f"{address} stopped at {part.stat().st_size} of {total} bytes; call again to continue"
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
        raise BadWeights(f"{named} has sha256 {found}, expected {sha256}...")
