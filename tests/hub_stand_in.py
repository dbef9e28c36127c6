"""A stand-in for the HTTP interface of the Hugging Face hub, and runs to publish there."""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator

import huggingface_hub
import pytest
import torch
import yaml
from support import images

import zoo
from zoo import cli
from zoo.settings import TrainConfig
from zoo.training import checkpoint

TOKEN = "hf_of_the_stand_in"
HUB = "hf-hub:owner/name"
OWN, SHARED = "simplenet_cifar_310k", "mobilenetv2_035"  # not in timm, and in timm
PREPROCESSING = {
    "size": [3, 32, 32],
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}


def commit_of(files: dict[str, bytes]) -> str:
    """Return the name of the state of a repository."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path, content in sorted(files.items()):
        digest.update(path.encode() + content)
    return digest.hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `repositories` (name -> path -> content), and accepts commits to them."""

    repositories: dict[str, dict[str, bytes]]
    private: set[str]
    requests: list[str]
    address: str

    def log_message(self, *args):
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}")
        name, found, rest = self.path.strip("/").partition("/resolve/")
        files = self.repositories.get(name)
        if not found or files is None or (name in self.private and not self._known()):
            return self._send(401, X_Error_Code="RepoNotFound")
        revision, _, file = rest.partition("/")
        commit = commit_of(files)
        if revision not in ("main", commit):
            return self._send(404, X_Error_Code="RevisionNotFound")
        if file not in files:
            return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        tag = hashlib.sha256(files[file]).hexdigest()
        self._send(200, files[file], ETag=f'"{tag}"', X_Repo_Commit=commit)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self):
        self.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._known():
            return self._send(401, b'{"error": "Invalid username or password."}')
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name, _, action = (
            self.path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        )
        if name not in self.repositories:
            return self._send(404, X_Error_Code="RepoNotFound")
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.repositories[name][entry["value"]["path"]] = content
        commit = commit_of(self.repositories[name])
        self._json({"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit})

    def _create(self, wanted: dict) -> None:
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        if name.startswith("somebody-else/"):
            return self._send(403, b'{"error": "You have no rights in this namespace."}')
        if name in self.repositories:
            return self._send(409, json.dumps({"url": f"{self.address}/{name}"}).encode())
        self.repositories[name] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.private.add(name)
        self._json({"url": f"{self.address}/{name}"})


@contextlib.contextmanager
def running() -> Iterator[type[Handler]]:
    """Run the stand-in; its class has the repositories and the requests."""
    handler = type("Own", (Handler,), {"repositories": {}, "private": set(), "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield handler
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in in place of the hub, and an empty cache."""
    constants = huggingface_hub.constants
    with running() as handler:
        monkeypatch.setattr(constants, "ENDPOINT", handler.address)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", handler.address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield handler


def checkpoint_of(model, arguments, **changes):
    """Return a checkpoint of `train.py` for two classes."""
    train = TrainConfig(epochs=3, mixup=0.2, limit_val_batches=2, batch_size=30, out="/home/me")
    return {
        "state_dict": model.state_dict(),
        "model": arguments,
        "data": {
            "num_classes": 2,
            "class_names": ["cat", "dog"],
            "preprocessing": dict(PREPROCESSING),
            "splits": {
                "train": {"images": 90, "names": "a", "classes": [40, 50]},
                "val": {"images": 100, "names": "b"},
            },
        },
        "config": {
            "model": {"name": arguments["name"], **changes},
            "data": {"name": "folder", "root": "/home/me/photos"},
            "train": vars(train),
        },
        "metrics": {"val/top1": 0.75, "val/loss": 0.5},
        "versions": {"torch": "2.15.0"},
    }


def make_run(folder, name=OWN, **changes):
    """Write the run folder of a model with random weights, and return the model."""
    model = zoo.create_model(name, num_classes=2).eval()
    arguments = {"name": name, "num_classes": 2, "in_chans": 3, "drop_rate": 0.0}
    content = checkpoint_of(model, arguments, **changes)
    checkpoint.save(content, folder / "checkpoints" / "best.ckpt")
    return model


def pickled(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def same(model, other):
    x = images(2, (32, 32))
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)


def read_card(hub):
    text = hub.repositories["owner/name"]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def pushed(folder, *options):
    return cli.execute(["push", str(folder), "owner/name", *options])
