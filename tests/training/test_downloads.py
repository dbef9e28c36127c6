"""Downloads from a local server in training runs with two processes."""

import hashlib
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"  # the file name that torchvision requests
SCRIPT = """
import runpy
import sys
from torchvision.datasets import CIFAR10

for name, value in {patches}.items():
    setattr(CIFAR10, name, value)
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `tmp_path/served`; yield the URL of the archive and the list of all requests."""
    requests: list[str] = []
    served = tmp_path / "served"
    served.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(served))

        def do_GET(self) -> None:
            # torchvision resolves redirects with a GET that has a header `Method: HEAD`.
            requests.append(self.headers.get("Method", "GET"))
            super().do_GET()

        def log_message(self, *args: Any) -> None:
            """Keep the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/{ARCHIVE}", requests
        http.shutdown()
        thread.join()


def write_cifar10(folder: Path) -> dict[str, Any]:
    """Write an archive of 32 + 8 images; return the facts about it that torchvision verifies."""
    home = folder / FOLDER
    home.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: Any) -> list[str]:
        (home / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((home / name).read_bytes()).hexdigest()]

    def images(count: int) -> dict[str, Any]:
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(count)]}

    train, test = write("data_batch_1", images(32)), write("test_batch", images(8))
    meta = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        archive.add(home, FOLDER)
    return {
        "tgz_md5": hashlib.md5((folder / ARCHIVE).read_bytes()).hexdigest(),
        "train_list": [train],
        "test_list": [test],
        "meta": {"filename": meta[0], "key": "label_names", "md5": meta[1]},
    }


def write_script(tmp_path: Path, patches: dict[str, Any]) -> Path:
    """Write a `train.py` that downloads CIFAR-10 from another URL."""
    path = tmp_path / "patched_train.py"
    path.write_text(SCRIPT.format(patches=patches))
    return path


def settings(tmp_path: Path) -> list[str]:
    return [
        "model=timm/test_vit",
        "model.img_size=32",
        "data=cifar10",
        f"data.root={tmp_path / 'data'}",
        "data.download=true",
        "data.num_workers=0",
        "train.batch_size=8",
        "train.epochs=1",
        "train.warmup_epochs=0",
        "train.accelerator=cpu",
        "train.loggers=[csv]",
        f"train.out={tmp_path / 'runs'}",
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_one_process_downloads_and_both_train(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, requests = server
    patches = {"url": url, **write_cifar10(tmp_path / "served")}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={free_port()}", str(write_script(tmp_path, patches))]
    done = subprocess.run(
        [*command, *settings(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert requests.count("GET") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    log = (folder / "train.log").read_text()
    assert "on 2 x cpu" in log
    assert "validation (8 images)" in log


def test_a_failed_download_ends_all_processes_with_the_same_error(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    """The test starts the processes itself, because torchrun ends all after one has failed."""
    url, requests = server  # no archive is served
    script = write_script(tmp_path, {"url": url})
    common = {
        **ENVIRONMENT,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "none",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *settings(tmp_path)],
            cwd=ROOT,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    expected = f"cannot download cifar10 to {tmp_path / 'data'}: HTTP Error 404: File not found"
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 1, error
        assert [line for line in error.splitlines() if expected in line] != [], error
        assert "Traceback" not in error
    assert len(requests) == 1
    assert not (tmp_path / "runs").exists()
