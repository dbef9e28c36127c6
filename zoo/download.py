"""Download a file: resumed, checked and read before it gets its final name.

https never leaves https along redirects. A part that was received earlier is only continued if the
server confirms that it still has the same file.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import re
import string
import sys
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import progress, tensor_files
from zoo.errors import BadInput, BadWeights, first_line, shown

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
DRIVE_PAGE = "https://drive.google.com/file/d/{}"
_TRIES = 2  # the second without resuming an earlier attempt


@dataclass(frozen=True)
class Sums:
    """Expected checksums of a file.

    Attributes:
        sha256: The first digits at least.
        git_sha1: The name of the file's blob in git.
    """

    sha256: str | None = None
    git_sha1: str | None = None

    def __post_init__(self) -> None:
        for key, least, most in (("sha256", 4, 64), ("git_sha1", 40, 40)):
            value = getattr(self, key)
            if value is None:
                continue
            if not isinstance(value, str) or not re.fullmatch(
                rf"[0-9a-fA-F]{{{least},{most}}}", value
            ):
                raise BadInput(
                    f"{key}={value!r} is not a checksum: give {least} to {most} hexadecimal"
                    " digits, or leave it out"
                )

    def __bool__(self) -> bool:
        return self.sha256 is not None or self.git_sha1 is not None

    def misfit(self, path: Path) -> str:
        """Return how the file differs, such as `"has sha256 ..., expected ..."`; "" if it fits."""
        for key, find in (("sha256", sha256_of), ("git_sha1", git_sha1_of)):
            expected = getattr(self, key)
            if expected is not None and not (found := find(path)).startswith(expected.lower()):
                more = "..." if len(expected) < len(found) else ""
                return f"has {key} {found}, expected {expected.lower()}{more}"
        return ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1_of(path: Path) -> str:
    """Return the name that git gives to a file's content, 40 hexadecimal digits."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unreachable(source: str, reason: str, put_at: Path, page: str | None = None) -> BadWeights:
    """Return the error for an address that cannot be fetched, with the way out."""
    elsewhere = f"fetch {page or 'it'} elsewhere"
    return BadWeights(
        f"{shown(source)} cannot be fetched: {reason.rstrip('.')}; {elsewhere} and put it at"
        f" {shown(put_at)}, or give the file itself (checkpoint_path, on the command line"
        " model.checkpoint_path)"
    )


def checked_address(source: str) -> str:
    """Return an address as it is sent to a server: only ASCII.

    Raises:
        BadWeights: It is malformed, or not https.
    """
    if source.startswith("gdrive:"):
        number = source.removeprefix("gdrive:")
        if not re.fullmatch(r"[\w-]{10,100}", number, re.ASCII):
            raise BadWeights(f"{shown(source)} is incomplete; give gdrive:<id of the file>")
        return DRIVE.format(number)
    try:
        parts = urllib.parse.urlsplit(source)
        host = (parts.hostname or "").encode("idna").decode()
        port = f":{parts.port}" if parts.port is not None else ""
        if not host or "@" in parts.netloc:
            raise ValueError("it has no plain host name")
        safe = string.printable
        plain = [urllib.parse.quote(text, safe=safe) for text in (parts.path, parts.query)]
    except (ValueError, UnicodeError) as error:
        raise BadWeights(f"{shown(source)} is not a valid address ({first_line(error)})") from error
    if not _is_safe(parts.scheme, host):
        raise BadWeights(
            f"{shown(source)}: weights are only fetched over https; give an https address"
        )
    host = f"[{host}]" if ":" in host else host
    return urllib.parse.urlunsplit((parts.scheme, host + port, *plain, ""))


def _is_safe(scheme: str, host: str | None) -> bool:
    return scheme == "https" or (scheme == "http" and host in LOOPBACK)


class _StaysSafe(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only; those from this machine to itself may be http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: PLR0913
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if not _is_safe(after.scheme, after.hostname) or (before.scheme, after.scheme) == (
            "https",
            "http",
        ):
            fp.close()
            raise BadWeights(
                f"{req.full_url} redirects to {shown(newurl)}, which is not https; weights are only"
                " fetched over https"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Restart(Exception):
    """What is on the disk does not belong to what the server sends."""


def download(source: str, address: str, path: Path, sums: Sums) -> None:
    """Download into `path`, continuing an earlier attempt; only a checked file gets this name."""
    part = path.with_name(path.name + ".part")
    for _ in range(_TRIES):
        try:
            _fetch(source, address, part, path)
            break
        except _Restart:
            _forget(part)
    else:
        raise BadWeights(f"{shown(source)} cannot be fetched: the server's ranges are inconsistent")
    try:
        if misfit := sums.misfit(part):
            raise BadWeights(f"{shown(source)} {misfit}; it was not kept")
        try:
            tensor_files.read(part)
        except BadWeights as error:
            what = str(error).removeprefix(f"{shown(part)} ")
            raise BadWeights(
                f"{shown(source)}: what the server sent {what}; it was not kept"
            ) from error
    except BadWeights:
        _forget(part)
        raise
    part.replace(path)
    _forget(part)


def _fetch(source: str, address: str, part: Path, put_at: Path) -> None:
    """Receive `part`, or the rest of it.

    Raises:
        BadWeights: The server cannot be reached, or refuses.
        _Restart: The part cannot be continued.
    """
    done = part.stat().st_size if part.exists() else 0
    known = _read_note(part) if done else {}
    headers = {"User-Agent": "zoo", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        headers |= {"If-Range": known["version"]} if known.get("version") else {}
    request = urllib.request.Request(address, headers=headers)
    try:
        opener = urllib.request.build_opener(_StaysSafe())
        with opener.open(request, timeout=30) as reply:
            _receive(reply, source, part, done, known)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:  # the part was complete, or belongs to another file
            raise _Restart from error
        reason = f"{error.code} {first_line(Exception(error.reason))}"
        raise unreachable(source, reason, put_at) from error
    except BadWeights:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = first_line(getattr(error, "reason", None) or error)
        raise unreachable(source, reason, put_at) from error


def _receive(reply: Any, source: str, part: Path, done: int, known: dict[str, Any]) -> None:
    """Write the body of a reply to `part`; see `_fetch`."""
    headers = reply.headers
    if "text/html" in headers.get("Content-Type", "").lower():
        raise BadWeights(_web_page(source))
    length = _number(headers.get("Content-Length"))
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        raise BadWeights(f"{shown(source)} is sent with Content-Encoding {shown(coding)}, which is"
                         " not supported")  # fmt: skip
    if reply.status == 206:
        _check_range(headers.get("Content-Range"), done, length, known.get("total"))
    elif reply.status != 200:
        raise BadWeights(f"{shown(source)} cannot be fetched: status {reply.status}")
    start = done if reply.status == 206 else 0
    total = None if length is None else start + length
    packed = coding in ("gzip", "x-gzip")
    if start and packed:
        raise _Restart
    _write_note(part, {"version": _version(headers), "total": total})
    unpack = _unpacker() if packed else None
    received = start
    name = f"fetching {shown(part.name.removesuffix('.part').split('-', 2)[-1])}"
    try:
        with _bar(name, total) as advance, _written(part, start) as write:
            advance(start)
            while chunk := reply.read(1 << 20):
                received += len(chunk)
                advance(len(chunk))
                write(chunk if unpack is None else unpack(chunk))
    except zlib.error as error:
        _forget(part)
        raise BadWeights(
            f"{shown(source)}: the server's gzip stream is damaged ({error}); it was not kept"
        ) from error
    if total is not None and received != total:
        if packed:  # cannot be continued
            _forget(part)
        raise BadWeights(
            f"{shown(source)} stopped at {received} of {total} bytes; call again to continue"
        )


def _web_page(source: str) -> str:
    if source.startswith("gdrive:"):
        page = DRIVE_PAGE.format(source.removeprefix("gdrive:"))
        return (
            f"{source}: Google Drive shows a page instead of the file, which is removed or fetched"
            f" too often; open {page}"
        )
    hint = ""
    if "/blob/" in source:
        raw = "resolve" if "huggingface.co" in source else "raw"
        hint = f": {source.replace('/blob/', f'/{raw}/', 1)}"
    return f"{shown(source)} is a web page; give the address of the file{hint}"


def _check_range(text: str | None, done: int, length: int | None, total: int | None) -> None:
    """Raise `_Restart` unless a partial reply continues exactly where the part ends."""
    if text is None:
        if not done or (total is not None and length is not None and done + length != total):
            raise _Restart
        return
    match = re.fullmatch(r"bytes\s+(\d+)-(\d+)/(\d+|\*)", text.strip(), re.ASCII)
    if match is None or int(match[1]) != done:
        raise _Restart
    whole = None if match[3] == "*" else int(match[3])
    if whole is not None and (int(match[2]) + 1 != whole or total not in (None, whole)):
        raise _Restart


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text.strip()) else None


def _version(headers: Any) -> str | None:
    """Return what identifies the version of a file on its server, if anything does."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _unpacker() -> Callable[[bytes], bytes]:
    """Return a function that unpacks the next chunk of a gzip stream."""
    stream, sizes = zlib.decompressobj(wbits=31), [0, 0]

    def unpack(chunk: bytes) -> bytes:
        sizes[0] += len(chunk)
        most = max(tensor_files.MAX_RATIO * sizes[0], tensor_files.SMALL) - sizes[1]
        data = stream.decompress(chunk, max(1, most))
        sizes[1] += len(data)
        if stream.unconsumed_tail:
            raise zlib.error("it unpacks to far more than its size")
        return data

    return unpack


@contextlib.contextmanager
def _bar(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar, in Python too if there is a terminal."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        if terminal:
            stack.enter_context(progress.show())
        yield stack.enter_context(progress.progress_bar(name, total, "bytes"))


@contextlib.contextmanager
def _written(part: Path, start: int) -> Iterator[Callable[[bytes], None]]:
    """Give a function that appends to a file; its errors name the disk."""

    def failed(error: OSError) -> BadWeights:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or first_line(error)
        return BadWeights(
            f"{shown(part)} cannot be written: {why}; free space, or set TORCH_HOME to a folder on"
            " another disk"
        )

    try:
        file = part.open("ab" if start else "wb", buffering=0)
    except OSError as error:
        raise failed(error) from error

    def write(data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise failed(error) from error

    with file:
        yield write


def _note(part: Path) -> Path:
    """Return the file that keeps what the server said about a part."""
    return part.parent / ".parts" / f"{part.name}.json"


def _read_note(part: Path) -> dict[str, Any]:
    try:
        note = json.loads(_note(part).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    note = note if isinstance(note, dict) else {}
    version, total = note.get("version"), note.get("total")
    return {
        "version": version if isinstance(version, str) and version.isprintable() else None,
        "total": total if isinstance(total, int) else None,
    }


def _write_note(part: Path, note: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        _note(part).parent.mkdir(exist_ok=True)
        _note(part).write_text(json.dumps(note), "utf-8")


def _forget(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
        _note(part).unlink(missing_ok=True)
        _note(part).parent.rmdir()  # if it is empty
