"""Published weights: fetched from a server of our own, verified, resumed, adapted."""

import concurrent.futures
import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator

import pytest
import safetensors.torch
import timm
import torch
from support import difference, images

import zoo
import zoo.timm_bridge
from zoo import build, registry
from zoo.command_line import composition
from zoo.download import checked_address
from zoo.fetch import cache_name, local_file
from zoo.weights import read_state_dict

NAME = "mobilenetv2_035"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`, by the folder: `broken/` half of it the first time, `html/` as a page,
    `ignore/` from the start whatever is asked for, `slow/` late."""

    files: dict[str, bytes]
    requests: list[str]
    broken: set[str]

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        wanted = self.headers.get("Range", "")
        self.requests.append(f"{self.path} {wanted}".strip())
        if name not in self.files:
            return self.send_error(404)
        body, start = self.files[name], 0
        if wanted and "/ignore/" not in self.path:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        kind = "text/html" if "/html/" in self.path else "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if "/slow/" in self.path:
            time.sleep(0.2)
        end = len(body)
        if "/broken/" in self.path and self.path not in self.broken:
            self.broken.add(self.path)
            end = len(body) // 2
        self.wfile.write(body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[type[Handler]]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    handler = type("Own", (Handler,), {"files": {}, "requests": [], "broken": set()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        handler.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield handler
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def cached(tmp_path):
    """List the files in the cache, locks aside."""

    def names():
        folder = tmp_path / "cache" / "hub" / "checkpoints"
        return sorted(p.name for p in folder.glob("*") if p.is_file() and p.suffix != ".lock")

    return names


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """Let facts give an address of the server for `name`, with timm's model of that name there."""

    def publish(name=NAME, file="weights.pth", folder="plain"):
        peer = timm.create_model(name).eval()
        torch.save(peer.state_dict(), tmp_path / file)
        content = (tmp_path / file).read_bytes()
        server.files[file] = content
        entry = {
            "tag": "test",
            "keys": "timm",
            "sha256": hashlib.sha256(content).hexdigest()[:8],
            "url": f"{server.address}/{folder}/{file}",
        }
        monkeypatch.setitem(registry.get_spec(name).facts, "weights", [entry])
        return peer

    return publish


def test_fetched_once_then_taken_from_the_cache(server, published, cached):
    peer, x = published(), images(2)
    with torch.no_grad():
        for _ in range(2):
            model = zoo.create_model(NAME, pretrained=True).eval()
            torch.testing.assert_close(model(x), peer(x))
    assert len(server.requests) == 1
    assert len(cached()) == 1


def test_a_file_with_another_sum_is_refused_and_not_kept(server, published, cached):
    published()
    server.files["weights.pth"] += b" "
    with pytest.raises(zoo.BadWeights, match=r"has sha256 [0-9a-f]{64}, expected"):
        zoo.create_model(NAME, pretrained=True)
    assert cached() == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("plain/none.pth", "cannot be fetched: 404"),
        ("html/weights.pth", "is a web page"),
        ("a b.pth", "cannot be fetched: URL can't contain"),
    ],
)
def test_what_cannot_be_fetched(path, message, server, published, cached):
    published()
    address = f"{server.address}/{path}"
    with pytest.raises(zoo.BadWeights, match=message) as caught:
        read_state_dict(address)
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cached() == []


def test_load_weights_takes_an_address(server, published, cached):
    """Broken off and resumed, with a wrong hash, missing, and a page in place of a file."""
    peer, model, x = published(folder="broken"), zoo.create_model(NAME).eval(), images(2)
    address = f"{server.address}/broken/weights.pth"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for wrong, message in (
        (f"{server.address}/html/weights.pth", "is a web page"),
        (f"{server.address}/plain/none.pth", "cannot be fetched: 404"),
        (address, "stopped at"),
    ):
        with pytest.raises(zoo.BadWeights, match=message) as caught:
            zoo.load_weights(model, wrong)
        assert wrong in str(caught.value)
    with pytest.raises(zoo.BadWeights, match="has sha256 .*, expected 0000"):
        zoo.load_weights(model, address, sha256="0000")
    assert cached() == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert zoo.load_weights(model, address) == []
    with torch.no_grad():
        torch.testing.assert_close(model(x), peer(x))
    with pytest.raises(
        zoo.BadWeights, match=r"has sha256 .*, expected 0000\.\.\.; it was not kept"
    ):
        zoo.load_weights(model, address, sha256="0000")


def test_no_server_and_no_safety(server):
    with pytest.raises(zoo.BadWeights, match="cannot be fetched"):
        read_state_dict("http://127.0.0.1:9/file.pth")
    with pytest.raises(zoo.BadWeights, match="only fetched over https"):
        read_state_dict("http://example.org/file.pth")


@pytest.mark.parametrize("address", ["hf:", "hf:name", "hf:owner/name", "hf:owner//file"])
def test_an_address_of_the_hub_that_is_none(address):
    with pytest.raises(zoo.BadWeights, match="give hf:owner/name/file"):
        read_state_dict(address)


def test_the_hub_is_asked_for_owner_name_and_file(monkeypatch, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "file.pth")
    asked = []
    monkeypatch.setattr(
        "zoo.hub_files.fetch", lambda *a, **more: asked.append(a) or tmp_path / "file.pth"
    )
    assert read_state_dict("hf:owner/name/folder/file.pth")["a"] == 1
    assert asked == [("owner/name", "folder/file.pth")]
    with pytest.raises(zoo.BadWeights, match="has sha256"):
        read_state_dict("hf:owner/name/file.pth", sha256="00000000")


def test_a_broken_download_is_said_kept_and_resumed(server, published, cached):
    published(folder="broken")
    with pytest.raises(
        zoo.BadWeights, match=r"stopped at \d+ of \d+ bytes; call again to continue"
    ):
        zoo.create_model(NAME, pretrained=True)
    (part,) = cached()
    assert part.endswith(".part")
    zoo.create_model(NAME, pretrained=True)
    size = len(server.files["weights.pth"])
    assert server.requests[1].endswith(f"bytes={size // 2}-")
    assert cached() == [part.removesuffix(".part")]


def test_a_part_of_another_file_does_not_end_up_in_the_weights(server, published, cached):
    published(folder="broken")
    with pytest.raises(zoo.BadWeights, match="stopped at"):
        zoo.create_model(NAME, pretrained=True)
    (part,) = cached()
    half = torch.hub.get_dir() + "/checkpoints/" + part
    with open(half, "r+b") as file:
        file.write(bytes(1000))
    with pytest.raises(zoo.BadWeights, match="sha256"):
        zoo.create_model(NAME, pretrained=True)
    assert cached() == []
    zoo.create_model(NAME, pretrained=True)
    # Longer than the file: the server cannot go on from there.
    address = f"{server.address}/plain/weights.pth"
    path = local_file(address)
    path.rename(path.with_name(path.name + ".part"))
    assert local_file(address).read_bytes() == server.files["weights.pth"]


def test_a_server_that_cannot_resume_sends_all_of_it(server, published):
    published(folder="broken/ignore")
    with contextlib.suppress(zoo.BadWeights):
        zoo.create_model(NAME, pretrained=True)
    zoo.create_model(NAME, pretrained=True)
    assert len(server.requests) == 2


def test_two_at_once_do_not_fetch_into_each_other(server, published):
    published(folder="slow")
    entry = registry.get_spec(NAME).weights[0]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        paths = [pool.submit(local_file, entry["url"], entry["sha256"]) for _ in range(3)]
    assert len({path.result() for path in paths}) == 1
    assert len(server.requests) == 1


def test_two_files_of_one_name_stay_apart(server, cached):
    server.files["a.pth"] = safetensors.torch.save({"a": torch.ones(1)})
    local_file(f"{server.address}/one/a.pth")
    local_file(f"{server.address}/two/a.pth")
    assert len(cached()) == 2


@pytest.mark.parametrize("name", [NAME, "efficientformer_l1"])
def test_another_number_of_classes_starts_fresh_on_a_published_trunk(name, published):
    peer, x = published(name), images(2, (224, 224) if "former" in name else (64, 64))
    with torch.no_grad():
        want = peer.forward_features(x)
        for num_classes in (10, 0):
            model = zoo.create_model(name, pretrained=True, num_classes=num_classes).eval()
            have = model.forward_features(x)
            want_map = want if want.ndim == 4 else want.transpose(1, 2).reshape(have.shape)
            assert difference(have, want_map) < 1e-4
            assert model(x).shape[1] == (num_classes or model.num_features)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels_take_the_published_filters(in_chans, published):
    peer = published()
    model = zoo.create_model(NAME, pretrained=True, in_chans=in_chans)
    ours, theirs = model.stem.conv.weight, peer.conv_stem.weight
    if in_chans == 1:
        torch.testing.assert_close(ours, theirs.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(ours[:, :3] * 4 / 3, theirs)
        torch.testing.assert_close(ours[:, 3], ours[:, 0])
    rest = [k for k in model.state_dict() if k != "stem.conv.weight"]
    twin = zoo.create_model(NAME, pretrained=True).state_dict()
    assert all(torch.equal(model.state_dict()[k], twin[k]) for k in rest)


def test_a_published_pyramid(published):
    peer, x = published(), images(2)
    model = zoo.create_model(NAME, pretrained=True, features_only=True, in_chans=3).eval()
    pyramid = timm.create_model(NAME, features_only=True).eval()
    pyramid.load_state_dict(peer.state_dict(), strict=False)
    with torch.no_grad():
        for have, want in zip(model(x), pyramid(x), strict=True):
            torch.testing.assert_close(have, want)


def test_a_model_without_published_weights_says_where_there_are_some(monkeypatch):
    spec = registry.get_spec(NAME)
    monkeypatch.setitem(spec.facts, "weights", [])
    with pytest.raises(zoo.BadWeights, match="has no published weights: its authors offer none"):
        zoo.create_model(NAME, pretrained=True)
    page = [{"tag": "a", "keys": "timm", "page": "https://example.org/a"}]
    monkeypatch.setitem(spec.facts, "weights", page)
    with pytest.raises(zoo.BadWeights, match=r"them from https://example\.org/a and give"):
        zoo.create_model(NAME, pretrained=True)


# --- tags, branches, mirrors, licences ----------------------------------------------------------


@pytest.fixture
def facts(monkeypatch, server, tmp_path):
    """Give a model other entries of published weights; files are served by their names."""

    def give(*entries, name="cct_2_3x2_32", **files):
        for file, content in files.items():
            torch.save(content, tmp_path / file)
            server.files[file] = (tmp_path / file).read_bytes()
        full = [
            {"tag": "a", "keys": "none", "licence": "MIT", "url": f"{server.address}/a", **entry}
            for entry in entries
        ]
        monkeypatch.setitem(registry.get_spec(name).facts, "weights", full)
        return name

    return give


def test_tags_choose_the_weights_their_classes_and_their_normalisation(server, facts):
    source = zoo.create_model("cct_2_3x2_32", num_classes=100)
    other = {"tag": "b", "url": f"{server.address}/b", "classes": 100}
    other["input"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    name = facts({}, other, b=source.state_dict())
    model = zoo.create_model(f"{name}.b", pretrained=True)
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)
    assert [path for path, *_ in map(str.split, server.requests)] == ["/b"]
    info = zoo.model_info(f"{name}.b")
    assert (info["name"], info["num_classes"]) == (f"{name}.b", 100)
    assert info["input"]["mean"] == [0.1, 0.2, 0.3]
    assert info["input"]["size"] == zoo.model_info(name)["input"]["size"]
    assert zoo.create_model(f"{name}.b").num_classes == 100
    assert zoo.create_model(f"{name}.b", pretrained=True, num_classes=3).num_classes == 3
    assert zoo.create_model(name).num_classes == 10
    bridged = timm.create_model(f"zoo_{name}.b", pretrained=True)
    assert torch.equal(bridged.head.fc.weight, source.head.fc.weight)
    assert bridged.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    with pytest.raises(
        zoo.UnknownModel, match=r"unknown tag 'bb' of .*; did you mean 'b'\? .*a, b"
    ):
        zoo.create_model(f"{name}.bb")
    with pytest.raises(zoo.UnknownModel, match="unknown model 'cct_2_3x2_33.b'"):
        zoo.create_model("cct_2_3x2_33.b")


def test_the_branch_of_the_facts_is_taken(server, facts):
    state = zoo.create_model("cct_2_3x2_32").state_dict()
    other = {key: torch.zeros_like(t) for key, t in state.items()}
    name = facts({"branch": "model"}, a={"model": state, "model_ema": other})
    model = zoo.create_model(name, pretrained=True)
    assert torch.equal(model.head.fc.weight, state["head.fc.weight"])
    facts({"branch": "net"}, a={"model_ema": state})
    zoo.create_model(name, pretrained=True)


def test_weights_without_a_classifier(facts, caplog):
    state = zoo.create_model("cct_2_3x2_32").state_dict()
    trunk = {key: t for key, t in state.items() if not key.startswith("head.fc")}
    name = facts({"head": False}, a=trunk)
    with pytest.raises(zoo.BadWeights, match="have no classifier; give num_classes"):
        zoo.create_model(name, pretrained=True)
    model = zoo.create_model(name, pretrained=True, num_classes=10)
    assert "classifier of 10 classes starts fresh" in caplog.text
    assert torch.equal(model.stem[0].project.weight, state["stem.0.project.weight"])
    zoo.create_model(name, pretrained=True, num_classes=0)
    with pytest.raises(zoo.BadInput, match="have no classifier; train one"):
        composition.run("eval", [f"model={name}", "model.pretrained=true", "data=digits"])


def test_mirrors_are_tried_in_turn(server, facts):
    state = zoo.create_model("cct_2_3x2_32").state_dict()
    mirrors = [{"url": f"{server.address}/c"}, {"url": f"{server.address}/b"}]
    name = facts({"sha256": "00000000", "mirrors": mirrors}, b=state)
    assert torch.equal(
        zoo.create_model(name, pretrained=True).head.fc.weight, state["head.fc.weight"]
    )
    assert server.requests == ["/a", "/c", "/b"]
    facts({"mirrors": mirrors[:1]})
    with pytest.raises(zoo.BadWeights, match="/a cannot be fetched: 404"):
        zoo.create_model(name, pretrained=True)


def test_weights_without_a_licence_are_named_once(server, facts, caplog):
    state = zoo.create_model("cct_2_3x2_32").state_dict()
    name = facts({"licence": "none stated"}, a=state)
    build._say_once.cache_clear()
    for _ in range(2):
        zoo.create_model(name, pretrained=True)
    assert caplog.text.count("state no licence for these weights") == 1


def test_every_published_address_is_one_that_is_fetched():
    """186 variants have an address; two of them take the place of a page that has no file."""
    with_address = zoo.list_models(pretrained=True)
    assert len(with_address) == 186
    addresses = [e["url"] for n in with_address for e in zoo.model_info(n)["weights"] if "url" in e]
    assert len(addresses) == len(set(addresses))
    for address in addresses:
        if not address.startswith("hf:"):
            checked_address(address)
        assert len(cache_name(address)) < 150
    assert len({cache_name(address) for address in addresses}) == len(addresses)
