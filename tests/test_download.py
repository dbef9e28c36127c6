"""Downloads from a server that does what servers do: only what was checked gets its final name."""

import gzip
import hashlib
import http.server
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import zoo
from zoo import download, fetch
from zoo.download import git_sha1_of
from zoo.fetch import cache_name, local_file
from zoo.weights import read_checkpoint, read_source

A = safetensors.torch.save({"a": torch.arange(4000.0)})
B = safetensors.torch.save({"a": torch.arange(4000.0) + 1})
HALF = len(A) // 2


def legacy(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


class Server:
    """Answers each request for a path with the next of its replies, the last one for ever.

    A reply is (status, headers, body); without a Content-Length the connection ends the body.
    """

    def __init__(self):
        self.replies: dict[str, list] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def give(self, path, *replies) -> str:
        self.replies[path] = list(replies)
        return f"{self.address}{path}"

    def asked(self, header) -> list[str | None]:
        return [headers.get(header) for _, headers in self.requests]


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    own = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            own.requests.append((self.path, dict(self.headers)))
            replies = own.replies[self.path.partition("?")[0]]
            status, headers, body = replies.pop(0) if len(replies) > 1 else replies[0]
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        own.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield own
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "hub" / "checkpoints"


def kept(folder) -> list[str]:
    return sorted(p.name for p in folder.glob("*") if p.is_file() and p.suffix != ".lock")


def whole(body, **headers):
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return (200, {"Content-Length": str(len(body)), **names}, body)


def rest(body, start, **headers):
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    given = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} | names
    return (206, {"Content-Length": str(len(body) - start), **given}, body[start:])


def broken(body, at=HALF, **headers):
    """A reply that promises all of `body`, and ends after `at` bytes."""
    status, names, _ = whole(body, **headers)
    return (status, names, body[:at])


def refused(address, **options) -> str:
    with pytest.raises(zoo.BadWeights) as caught:
        local_file(address, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_a(path: Path) -> bool:
    return path.read_bytes() == A


UNREADABLE = {
    "cut without a length": (200, {}, A[:HALF]),
    "a page that does not say so": whole(b"<!DOCTYPE html><html>log in</html>"),
    "an error in JSON": whole(b'{"error": "too many requests"}', Content_Type="application/json"),
    "nothing": whole(b""),
    "a length that is too small": (200, {"Content-Length": str(HALF)}, A),
    "half of an old file": (200, {}, legacy({"a": torch.zeros(1000)})[:2000]),
    "a damaged gzip stream": (200, {"Content-Encoding": "gzip"}, gzip.compress(A)[:-500]),
    "no gzip stream": (200, {"Content-Encoding": "gzip"}, A),
    "a gzip bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(1 << 27))),
    "another coding": (200, {"Content-Encoding": "br"}, A),
    "no content": (204, {}, b""),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_is_not_kept(what, server, folder):
    address = server.give("/x.pth", UNREADABLE[what], whole(A))
    message = refused(address)
    assert address in message
    assert kept(folder) == []
    assert is_a(local_file(address)), "the next call fetches it"


def test_a_pickle_that_would_run_code_is_not_kept(server, folder):
    class Bomb:
        def __reduce__(self):
            return os.system, ("true",)

    address = server.give("/x.pth", whole(legacy({"a": Bomb()})))
    assert "more than weights" in refused(address)
    assert kept(folder) == []


@pytest.mark.parametrize("length", [{}, {"Content-Length": "abc"}, {"Content-Length": "-1"}])
def test_no_length_is_fine_if_the_file_can_be_read(length, server):
    assert is_a(local_file(server.give("/x.pth", (200, length, A))))


def test_a_packed_body_is_unpacked(server):
    packed = gzip.compress(A)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
    assert is_a(local_file(server.give("/x.pth", (200, headers, packed))))
    assert server.asked("Accept-Encoding") == ["identity"]


def test_a_cut_packed_body_starts_again(server):
    packed = gzip.compress(A)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
    address = server.give("/x.pth", (200, headers, packed[:-9]), (200, headers, packed))
    assert "stopped at" in refused(address)
    assert is_a(local_file(address))
    assert server.asked("Range") == [None, None]


def test_a_download_goes_on_where_it_stopped(server, folder):
    address = server.give("/x.pth", broken(A, ETag='"1"'), rest(A, HALF, ETag='"1"'))
    assert f"stopped at {HALF} of {len(A)} bytes" in refused(address)
    assert is_a(local_file(address))
    assert server.asked("Range")[1] == f"bytes={HALF}-"
    assert server.asked("If-Range")[1] == '"1"'
    assert kept(folder) == [cache_name(address)]
    assert not (folder / ".parts").exists()


@pytest.mark.parametrize(
    ("first", "validator"),
    [
        ({"ETag": 'W/"1"', "Last-Modified": "Mon, 01 Jan 2024"}, "Mon, 01 Jan 2024"),
        ({"ETag": 'W/"1"'}, None),
        ({}, None),
    ],
)
def test_only_a_strong_version_is_asked_for(first, validator, server):
    status, headers, body = broken(A)
    address = server.give("/x.pth", (status, headers | first, body), rest(A, HALF))
    refused(address)
    assert is_a(local_file(address))
    assert server.asked("If-Range")[1] == validator


CHANGED = {
    "all of it, as If-Range wants": [whole(B)],
    "a range from the start": [rest(B, 0), whole(B)],
    "a range from elsewhere": [rest(B, HALF + 1), whole(B)],
    "a range of another length": [rest(B + b" ", HALF), whole(B)],
    "a range that ends early": [
        (206, {"Content-Range": f"bytes {HALF}-{HALF + 9}/{len(B)}"}, B[HALF : HALF + 10]),
        whole(B),
    ],
    "a range that is none": [rest(B, HALF, Content_Range="items 0-1/2"), whole(B)],
    "a range without a place": [(206, {"Content-Length": "7"}, B[:7]), whole(B)],
    "not satisfiable": [(416, {}, b""), whole(B)],
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_a_part_of_another_file_is_dropped(what, server, folder):
    address = server.give("/x.pth", broken(A), *CHANGED[what])
    refused(address)
    assert local_file(address).read_bytes() == B
    assert kept(folder) == [cache_name(address)]


def test_a_server_that_never_agrees_is_one_line(server):
    address = server.give("/x.pth", broken(A), rest(B, 5))
    refused(address)
    assert "ranges are inconsistent" in refused(address)
    assert "ranges are inconsistent" in refused(server.give("/y.pth", (206, {}, A)))


# --- redirects and addresses --------------------------------------------------------------------


def test_redirects_stay_on_https(server, monkeypatch):
    there = server.give("/there.pth", whole(A))
    assert is_a(local_file(server.give("/x.pth", (302, {"Location": there}, b""))))
    for target in ("http://example.org/x.pth", "ftp://127.0.0.1/x.pth", "file:///etc/passwd"):
        message = refused(server.give("/y.pth", (302, {"Location": target}, b"")))
        assert "not https" in message or "not allowed" in message
    assert "cannot be fetched" in refused(server.give("/z.pth", (302, {"Location": "/z.pth"}, b"")))


def test_https_does_not_become_http_even_on_this_machine():
    import urllib.request

    class Reply:
        def close(self):
            pass

    request = urllib.request.Request("https://localhost/x.pth")
    for target in ("http://127.0.0.1/x.pth", "http://example.org/x.pth", "ftp://a/x"):
        with pytest.raises(zoo.BadWeights, match="not https"):
            download._StaysSafe().redirect_request(request, Reply(), 302, "", {}, target)
    followed = download._StaysSafe().redirect_request(
        request, Reply(), 302, "", {}, "https://example.org/x.pth"
    )
    assert followed.full_url == "https://example.org/x.pth"


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/x.pth",
        "HTTP://example.org/x.pth",
        "https://[::1/x",
        "https://",
        "https:///x.pth",
        "https://a:99999/x",
        "https://a:b/x",
        "https://user:word@a/x",
        "https://" + "a" * 70 + ".org/x",
        "https://a..b/x",
        "hf:",
        "hf:a/b",
        "hf://",
        "hf:a/b/../c",
        "hf:a/b/\0",
        "gdrive:",
        "gdrive:../../x",
        "https://127.0.0.1:9/a\nb.pth",
        "https://127.0.0.1:9/" + "x" * 5000,
        "https://127.0.0.1:9/ü/ß.pth?q=ä",
        "https://127.0.0.1:9/\ud800",
    ],
)
def test_odd_addresses_are_one_line(address, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refused(address)


def test_letters_beyond_ascii_and_capitals_are_sent_properly(server):
    server.give("/%C3%BC.pth", whole(A))
    assert is_a(local_file(f"{server.address}/ü.pth?a=ß"))
    assert server.requests[0][0] == "/%C3%BC.pth?a=%C3%9F"
    assert is_a(local_file(server.give("/x.pth", whole(A)).replace("http:", "HTTP:")))
    assert is_a(local_file(server.give("/" + "x" * 500 + ".pth", whole(A))))


def test_drive(server, monkeypatch, folder):
    monkeypatch.setattr(download, "DRIVE", server.address + "/download?id={}&confirm=t")
    page = whole(b"<html>", Content_Type="text/html; charset=utf-8")
    server.give("/download", whole(A), page)
    assert is_a(local_file("gdrive:1LXh5wjVEUu5Kj1foc-_"))
    assert server.requests[0][0] == "/download?id=1LXh5wjVEUu5Kj1foc-_&confirm=t"
    message = refused("gdrive:1xzG4VQyQyxWJfQTcGCE")
    assert "open https://drive.google.com/file/d/1xzG4VQyQyxWJfQTcGCE" in message
    assert "/raw/" in refused(server.give("/o/r/blob/main/x.pth", page))


def test_an_unreachable_address_says_what_to_do(server, folder, monkeypatch):
    address = server.give("/x.pth", (404, {}, b""))
    message = refused(address)
    assert "cannot be fetched: 404" in message
    assert f"put it at {folder / cache_name(address)}" in message
    assert "model.checkpoint_path" in message
    (folder / cache_name(address)).write_bytes(A)
    assert is_a(local_file(address))
    (folder / cache_name("hf:a/b/c.pth")).write_bytes(A)
    assert is_a(local_file("hf:a/b/c.pth"))


# --- the cache ----------------------------------------------------------------------------------


def test_an_unreadable_file_in_the_cache_is_fetched_again(server, folder):
    address = server.give("/x.pth", whole(A))
    local_file(address).write_bytes(A[:HALF])
    path, content = read_source(address)
    assert is_a(path)
    assert content["a"][3] == 3
    local_file(address).write_bytes(b"")
    server.give("/x.pth", (503, {}, b""))
    with pytest.raises(zoo.BadWeights, match="cannot be fetched: 503"):
        read_checkpoint(address)


def test_a_file_in_the_cache_with_another_sum_is_fetched_again(server):
    address, sum_of_a = server.give("/x.pth", whole(B), whole(A)), hashlib.sha256(A).hexdigest()
    local_file(address)
    assert is_a(local_file(address, sum_of_a))


def test_plain_names_of_torch_hub_are_found(server, folder):
    folder.mkdir(parents=True)
    sum_of_a = hashlib.sha256(A).hexdigest()
    (folder / "x-1.pth").write_bytes(A)
    assert is_a(local_file(server.give("/x-1.pth", (404, {}, b"")), sum_of_a[:8]))
    assert is_a(local_file(f"{server.address}/x-1.pth")), "it can be read"
    assert server.requests == []
    (folder / "x-1.pth").write_bytes(A[:-1])
    server.give("/x-1.pth", whole(A))
    assert local_file(f"{server.address}/x-1.pth").name != "x-1.pth"
    (folder / "net.pth").write_bytes(B)
    assert is_a(local_file(server.give("/net.pth", whole(A)))), "a name that says nothing"


@pytest.mark.parametrize("kind", ["below a file", "no permission"])
def test_a_cache_that_cannot_be_written(kind, tmp_path, server, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    if kind == "below a file":
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file" / "x"))
    else:

        def readonly(*args, **kwargs):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(fetch, "FileLock", readonly)
    message = refused(server.give("/x.pth", whole(A)))
    assert "cannot be written" in message
    assert "set TORCH_HOME" in message


def test_a_cache_that_can_only_be_read_is_used(server, folder, monkeypatch):
    path = local_file(server.give("/x.pth", whole(A)))

    def readonly(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(fetch, "FileLock", readonly)
    assert local_file(f"{server.address}/x.pth") == path


def test_a_full_disk_is_called_so(server, folder, monkeypatch):
    real = Path.open

    def opened(self, mode="r", *args, **kwargs):
        if self.suffix != ".part":
            return real(self, mode, *args, **kwargs)
        return real(Path("/dev/full"), mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    assert "the disk is full" in refused(server.give("/x.pth", whole(A)))


# --- sums ---------------------------------------------------------------------------------------


def test_sums(server, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(A)
    sha256 = hashlib.sha256(A).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(A) + A).hexdigest()
    assert git_sha1_of(file) == git
    address = server.give("/x.pth", whole(A))
    for source in (address, str(file)):
        for options in ({"sha256": sha256.upper()}, {"sha256": sha256[:8]}, {"git_sha1": git}):
            assert is_a(local_file(source, **options))
        assert "has sha256" in refused(source, sha256="0" * 64)
        assert "has git_sha1" in refused(source, git_sha1="0" * 40)
        for bad in ("", "xyz", "12", "0" * 65, 7):
            with pytest.raises(zoo.BadInput, match="is not a checksum"):
                local_file(source, sha256=bad)


def test_a_bar_is_shown_in_a_terminal(server, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    local_file(server.give("/x.pth", whole(A)))
    assert "fetching x.pth" in screen.getvalue()
