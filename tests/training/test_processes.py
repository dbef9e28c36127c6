"""Training with two processes, compared with one: two agents of torchrun, like two machines."""

import contextlib
import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput

from .conftest import checkpoint_of
from .test_evaluate import write_images

ROOT = Path(__file__).parents[2]


def settings(data: Path, out: Path, batch_size: int) -> list[str]:
    """Return settings of one SGD update without batch norms: weights change by the gradient."""
    return [
        "model=timm/test_vit",
        "model.img_size=32",
        "data=folder",
        f"data.root={data}",
        "data.image_size=32",
        "data.num_workers=0",
        f"train.batch_size={batch_size}",
        "train.optimizer=momentum",
        "+train.optimizer_args.momentum=0",
        "train.weight_decay=0",
        "train.scheduler=constant",
        "train.lr=0.1",
        "train.lr_base_batch=16",
        "train.warmup_epochs=0",
        "train.epochs=1",
        "train.accelerator=cpu",
        "train.loggers=[csv]",
        f"train.out={out}",
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a run with 1 process x 16 images, and of one with 2 x 8 images."""
    root = tmp_path_factory.mktemp("processes")
    write_images(root / "data", {"a": 3, "b": 4})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test"]
    command += ["--local_addr=127.0.0.1", "train.py", *settings(root / "data", root / "two", 8)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, text=True
                )
            )
            for log in [stack.enter_context((root / f"{n}.log").open("w")) for n in range(2)]
        ]
        codes = [node.wait(timeout=240) for node in nodes]
    assert codes == [0, 0], [(root / f"{n}.log").read_text() for n in range(2)]
    run_command("train", settings(root / "data", root / "one", 16))
    (two,), (one,) = (root / "two").iterdir(), (root / "one").iterdir()
    return {"one": one, "two": two}


def test_two_processes_compute_the_gradients_of_the_joint_batch(folders: dict[str, Path]) -> None:
    one, two = checkpoint_of(folders["one"]), checkpoint_of(folders["two"])
    assert two["progress"]["world_size"] == 2
    assert one["progress"]["update"] == two["progress"]["update"] == 1
    torch.manual_seed(0)
    from lightning.fabric import seed_everything

    import zoo

    seed_everything(0, verbose=False)
    start = zoo.create_model(**one["model"]).state_dict()
    moved = 0.0
    for key, value in one["state_dict"].items():
        gradient, theirs = (value - start[key]) / 0.1, (two["state_dict"][key] - start[key]) / 0.1
        torch.testing.assert_close(theirs, gradient, rtol=1e-3, atol=2e-6)
        moved = max(moved, float(gradient.abs().max()))
    assert moved > 1e-2, "the test would pass without any gradient"


def test_every_validation_image_counts_once(folders: dict[str, Path]) -> None:
    assert "validation (7 images)" in (folders["two"] / "train.log").read_text()
    rows = []
    for name in ("one", "two"):
        with (folders[name] / "metrics.csv").open() as file:
            rows += list(csv.DictReader(file))
    one, two = rows
    assert two["val/top1"] == one["val/top1"]
    for key in ("train/loss", "val/loss"):
        assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-5)


def test_one_run_folder_and_the_learning_rate_of_the_joint_batch(folders: dict[str, Path]) -> None:
    assert len(list(folders["two"].parent.iterdir())) == 1
    assert checkpoint_of(folders["two"])["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_resuming_with_another_number_of_processes_is_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=r"with 2 processes; resume with 2 \(got 1\)"):
        run_command("train", [f"train.resume={folders['two']}", "train.epochs=2"])
