"""WebDataset shards from a web server: the same batches, broken connections, clear errors."""

import http.server
import threading

import pytest

from zoo.data import remote
from zoo.errors import BadInput

pytest.importorskip("webdataset", reason="pip install 'zoo-vision[data]'")
from test_streams import COUNT, epoch_of, opened, same, shards, write_shard  # noqa: E402, F401

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder, with ranges; it can break connections and fail."""

    root, asked, breaks, ranges = None, [], 0, True

    def log_message(self, *args):
        pass

    def do_GET(self):
        name, span = self.path.strip("/"), self.headers.get("Range")
        type(self).asked.append((name, span))
        file = self.root / name
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if type(self).breaks and name.endswith(".tar"):
            type(self).breaks -= 1
            self.wfile.write(content[start : start + 3000])
            return
        self.wfile.write(content[start:])


@pytest.fixture
def server(shards, monkeypatch):  # noqa: F811
    """Return the server of the shards, whose address is `url`."""
    kind = type("Own", (Server,), {"root": shards, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        kind.url = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(remote, "WAIT", 0.0)
        yield kind
        running.shutdown()


def test_the_batches_are_those_of_the_folder(server, shards):  # noqa: F811
    ours, theirs = opened(server.url + "/"), opened(shards)
    assert same(epoch_of(ours, 1), epoch_of(theirs, 1))
    assert same(list(ours.val_dataloader()), list(theirs.val_dataloader()))
    assert ours.fingerprint() == theirs.fingerprint()


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connections_are_continued_at_the_same_byte(server, shards, ranges):  # noqa: F811
    server.ranges = ranges
    data = opened(server.url)
    server.breaks, server.asked[:] = 8, []  # some are spent on the look for the shards
    assert same(epoch_of(data, 2), epoch_of(opened(shards), 2))
    assert server.breaks == 0
    spans = [span for _, span in server.asked if span]
    assert len(spans) >= 3
    assert spans[0].startswith("bytes=")


def test_an_epoch_is_resumed(server):
    data = opened(server.url)
    whole = epoch_of(data, 3)
    resumed = data.train_dataloader()
    resumed.load_state_dict({"epoch": 3, "batch": 2})
    assert same(list(resumed), whole[2:])


def test_a_server_that_fails_within_an_epoch_is_one_line_even_if_corrupt_images_are_skipped(
    server,
):
    data = opened(server.url, skip_corrupt=True)
    server.breaks = 10**6
    server.ranges = False  # each attempt begins anew, and breaks before the byte that is needed
    with pytest.raises(BadInput, match=r"train-\d\.tar cannot be read \(.*continue the run") as hit:
        epoch_of(data, 0)
    assert "\n" not in str(hit.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train_split_name": "train-{0..9}.tar|24"}, r"train-9\.tar cannot be read \(404"),
        ({"train_split_name": "other"}, r"no split 'other': list it in http://.*/_info\.json"),
    ],
)
def test_what_the_server_does_not_have(server, names, message):
    with pytest.raises(BadInput, match=message):
        opened(server.url, **names)


def test_a_server_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.0)
    with pytest.raises(BadInput, match=r"http://127\.0\.0\.1:9/_info\.json cannot be read"):
        opened("http://127.0.0.1:9")
    with pytest.raises(BadInput, match="cannot be read"):
        opened("http://[::bad")
