"""Full disks, too little memory, killed processes: one line, and nothing is lost."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from zoo.command_line.composition import run as run_command
from zoo.environment import is_out_of_memory
from zoo.errors import BadInput, ZooError
from zoo.training import checkpoint, disk, fit, loop
from zoo.training.faults import MachineFault, report_machine_faults

from .conftest import checkpoint_of, resume_run

FAST = [
    *("model=cct_2_3x2_32", "data.image_size=32", "train.epochs=2", "train.warmup_epochs=0"),
    *("train.limit_train_batches=1", "train.limit_val_batches=1", "train.batch_size=4"),
]


def full(error: int = errno.ENOSPC) -> OSError:
    return OSError(error, os.strerror(error))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "^out of memory; lower it"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "^out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "^out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "^a process that"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"
                         " that dataloader's workers are out of shared memory."),
            "ran out of shared memory .*; fewer",
        ),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "refuses more processes"),
        (full(), r"cannot write to .*: No space left on device \(.* MiB are free\)"),
        (full(errno.EROFS), "Read-only file system"),
    ],
)  # fmt: skip
def test_faults_of_the_machine_are_one_line(error: Exception, message: str, tmp_path: Path) -> None:
    with (
        pytest.raises(MachineFault, match=message) as hit,
        report_machine_faults(memory="lower it", loader="fewer", folder=tmp_path, kept=lambda: "k"),
    ):
        raise error
    assert "\n" not in str(hit.value)
    assert str(hit.value).endswith("; k")


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(2, "gone", "/elsewhere/x")):
        with (
            pytest.raises(type(error)),
            report_machine_faults(memory="", loader="", folder=tmp_path),
        ):
            raise error
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_a_size_beyond_any_memory_is_one_line() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as hit:
        torch.zeros(2**60)
    assert is_out_of_memory(hit.value)
    with pytest.raises(ZooError, match=r"data\.image_size=4000000 is larger .*; lower it"):
        run_command("train", ["model=simplenet_cifar_310k", "data.image_size=4000000"])


def test_a_full_disk_keeps_the_old_checkpoint_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save({"number": 1}, path)
    before = path.read_bytes()

    class Full:
        """A file on a disk with 1000 bytes left, whose last write is short."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 1000

        def write(self, data: bytes) -> int:
            if self.left <= 0:
                raise full()
            data, self.left = bytes(data)[: self.left], self.left - len(data)
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

    opened = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args, **kwargs: Full(opened(*args, **kwargs)))
    with pytest.raises(OSError, match="No space left") as hit:
        checkpoint.save({"big": torch.zeros(10_000)}, path)
    assert hit.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def fails_in_second_epoch(original: Callable) -> Callable:
    """Return a function that raises `ENOSPC` once an epoch is complete."""

    def write(*args: Any, **kwargs: Any) -> Any:
        content = next((arg for arg in args if isinstance(arg, dict)), {})
        if content.get("progress", {}).get("epoch") == 2 or content.get("epoch") == 2:
            raise full()
        return original(*args, **kwargs)

    return write


@pytest.mark.parametrize("writer", ["checkpoint", "metrics", "tensorboard", "log"])
def test_a_disk_that_gets_full_while_training_names_the_way_out(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops with one line, and resumes when space was freed."""
    from zoo.training import logs

    patches = {
        "checkpoint": (checkpoint, "save"),
        "metrics": (logs.MetricsTable, "add"),
        "tensorboard": (logs.trackers.TensorBoardLogger, "log_metrics"),
        "log": (logs.logging.StreamHandler, "flush"),
    }
    place, name = patches[writer]
    original = getattr(place, name)
    if writer in ("tensorboard", "log"):
        calls: list[int] = []

        def write(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            tables = [file.read_text("utf-8") for file in tmp_path.glob("*/metrics.csv")]
            if writer == "tensorboard" and len(calls) > 2 or any(x.count("\n") > 1 for x in tables):
                raise full()
            return original(*args, **kwargs)

        monkeypatch.setattr(place, name, write)
    else:
        monkeypatch.setattr(place, name, fails_in_second_epoch(original))
    with pytest.raises(MachineFault, match="No space left on device.*continue with .*resume"):
        run_command("train", [*FAST, "train.log_every=1", f"train.out={tmp_path}"])
    monkeypatch.undo()
    (folder,) = tmp_path.iterdir()
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    if checkpoint_of(folder)["progress"]["epoch"] < 2:
        resume_run(folder)
    assert checkpoint_of(folder)["progress"]["epoch"] == 2


def test_leftovers_of_killed_processes_are_removed_at_resume(tmp_path: Path) -> None:
    folder = run_command("train", [*FAST, f"train.out={tmp_path}", "train.stop_at_epoch=1"])
    leftovers = [
        folder / "checkpoints" / ".last.ckpt.x8y2",
        folder / "checkpoints" / ".best.ckpt.link",
        folder / ".metrics.csv.abcd",
    ]
    for path in leftovers:
        path.write_bytes(b"torn")
    with FileLock(folder / ".lock"), pytest.raises(BadInput, match="another process is training"):
        resume_run(folder)
    assert all(path.exists() for path in leftovers), "they may belong to the other process"
    resume_run(folder)
    assert not any(path.exists() for path in leftovers)
    assert not (folder / ".lock").exists()


def test_a_run_that_is_killed_before_its_first_epoch_ends_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(self: loop.Loop) -> None:
        raise Killed

    overrides = [*FAST, "train.epochs=1"]
    whole = run_command("train", [*overrides, f"train.out={tmp_path / 'whole'}"])
    monkeypatch.setattr(loop.Loop, "_train_epoch", kill)
    with pytest.raises(Killed):
        run_command("train", [*overrides, f"train.out={tmp_path / 'killed'}"])
    monkeypatch.undo()
    (folder,) = (tmp_path / "killed").iterdir()
    assert checkpoint_of(folder)["progress"]["update"] == 0
    with pytest.raises(ZooError, match=r"has no update yet; continue it with: .*train\.resume"):
        run_command("eval", [f"weights={folder}"])
    resume_run(folder)
    ours, theirs = checkpoint_of(folder)["state_dict"], checkpoint_of(whole)["state_dict"]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(ZooError, match="ended before its first checkpoint.*start it again"):
        resume_run(folder)


def test_a_killed_loader_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch raises this error from a signal handler, anywhere in the main process."""

    def killed(self: loop.Loop) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(loop.Loop, "_update", killed)
    with pytest.raises(MachineFault, match=r"died, usually because memory ran out; .*continue"):
        run_command("train", [*FAST, f"train.out={tmp_path}"])


class Deadly(torch.utils.data.Dataset):
    """A data set whose process is killed, as by the kernel when memory runs out."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_pytorch_says_that_a_loader_process_was_killed(tmp_path: Path) -> None:
    with (
        pytest.raises(MachineFault, match="a process that loads images died, .*; fewer; k"),
        report_machine_faults(memory="", loader="fewer", folder=tmp_path, kept=lambda: "k"),
    ):
        list(torch.utils.data.DataLoader(Deadly(), num_workers=1))


def test_more_processes_than_cores_are_rejected_before_anything_starts(tmp_path: Path) -> None:
    overrides = [*FAST, "train.accelerator=cpu", "train.devices=999", f"train.out={tmp_path}"]
    with pytest.raises(BadInput, match=r"train\.devices=999 starts .* too many for \d+ cores"):
        run_command("train", overrides)
    assert not list(tmp_path.iterdir())


def test_fp16_and_several_machines_need_what_they_need(tmp_path: Path) -> None:
    cpu = [*FAST, "train.accelerator=cpu", f"train.out={tmp_path}"]
    with pytest.raises(BadInput, match=r"train\.precision=fp16 needs a GPU.*bf16"):
        run_command("train", [*cpu, "train.precision=fp16"])
    with pytest.raises(BadInput, match=r"train\.num_nodes=2 .*torchrun"):
        run_command("train", [*cpu, "train.num_nodes=2"])
    assert not list(tmp_path.iterdir())


def test_a_write_replaces_the_file_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), disk.atomic_file(path, "w") as file:
        file.write(b"new")
    assert path.read_text() == "old"
    with disk.atomic_file(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new"
    assert fit._kept(tmp_path, "zoo train") == "no checkpoint was written"
