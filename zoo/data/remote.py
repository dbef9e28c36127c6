"""Read a file from a web server in one pass, and continue where a broken connection stopped."""

import http.client
import io
import re
import time
import urllib.error
import urllib.request
from typing import Any

from zoo.errors import BadInput, first_line

ATTEMPTS = 5  # without a single new byte
WAIT = 0.5  # seconds before the second attempt, twice as long before each further one
TIMEOUT = 30.0  # seconds


def is_url(text: object) -> bool:
    """Return whether a text is the address of a web server."""
    return re.match(r"https?://", str(text)) is not None


class RemoteFile(io.RawIOBase):
    """A file on a server, to be read from its beginning to its end.

    Args:
        url: An address that begins with http:// or https://.

    Raises:
        BadInput: The file cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._url, self._done, self._failures = url, 0, 0
        self._reply: Any = None
        self._open()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer; return their number, 0 at the end."""
        while True:
            try:
                found = self._reply.read(len(buffer))
                length = self._reply.length  # that are left; None if the server did not say it
                if not found and length:
                    raise http.client.IncompleteRead(b"", length)
                break
            except (OSError, http.client.HTTPException) as error:
                self._wait_or_raise(error)
                self._open()
        self._done += len(found)
        self._failures = 0 if found else self._failures
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the connection."""
        if self._reply is not None:
            self._reply.close()
        super().close()

    def _open(self) -> None:
        """Ask for the bytes that are left."""
        headers = {"User-Agent": "zoo", "Accept-Encoding": "identity"}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
        while True:
            try:
                request = urllib.request.Request(self._url, headers=headers)
                self._reply = urllib.request.urlopen(request, timeout=TIMEOUT)
                if self._done and self._reply.status != 206:  # the server sends all of it again
                    self._skip(self._done)
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    raise self._failure(f"{error.code} {error.reason}") from error
                self._wait_or_raise(error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._wait_or_raise(error)

    def _skip(self, count: int) -> None:
        while count:
            found = self._reply.read(min(count, 2**16))
            if not found:
                raise http.client.IncompleteRead(b"", count)
            count -= len(found)

    def _wait_or_raise(self, error: Exception) -> None:
        """Wait before the next attempt; raise `BadInput` after too many, or for a bad address."""
        self._failures += 1
        if self._failures >= ATTEMPTS or isinstance(error, ValueError):
            reason = first_line(getattr(error, "reason", None) or error)
            raise self._failure(reason) from error
        time.sleep(WAIT * 2 ** (self._failures - 1))

    def _failure(self, reason: str) -> BadInput:
        return BadInput(
            f"{self._url} cannot be read ({reason}); correct data.root or the split, or continue"
            " the run when the server can be reached"
        )


def open_shard(url: str, mode: str = "rb", bufsize: int = 2**16, **_: Any) -> io.BufferedReader:
    """Open a file of a server, as webdataset calls it."""
    return io.BufferedReader(RemoteFile(url), max(bufsize, 2**16))


def check_file(url: str, *, is_optional: bool = False) -> None:
    """Raise `BadInput` unless a file can be read.

    Args:
        url: Its address.
        is_optional: Whether the server may say that it does not exist.
    """
    try:
        RemoteFile(url).close()
    except BadInput as error:
        if not (is_optional and isinstance(error.__cause__, urllib.error.HTTPError)):
            raise
