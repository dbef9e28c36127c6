"""SIGUSR1, which SLURM sends before it ends a job: the run is saved, and the job is requeued."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from zoo.command_line.composition import run as run_command
from zoo.training import slurm
from zoo.training.interrupt import Interrupt

from .conftest import checkpoint_of, resume_run, signal_at
from .test_stopping import SMALL

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def stand_in(folder: Path, name: str, script: str) -> Path:
    """Write a program for the front of PATH; return the file where it notes its arguments."""
    folder.mkdir(exist_ok=True)
    notes = folder / f"{name}.txt"
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n{script}\n')
    program.chmod(0o755)
    return notes


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    notes = stand_in(tmp_path / "bin", "scontrol", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return notes


def interrupted_run(out: Path) -> Path:
    with signal_at(2, signal.SIGUSR1):
        run_command("train", [*SMALL, "train.epochs=1", f"train.out={out}"])
    (folder,) = out.iterdir()
    return folder


def test_a_run_is_saved_and_its_job_is_requeued(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    folder = interrupted_run(tmp_path / "runs")
    assert scontrol.read_text() == "requeue 4711\n"
    printed = capsys.readouterr().out
    assert "stopped by SIGUSR1" in printed
    assert "requeued the SLURM job 4711" in printed
    assert checkpoint_of(folder)["progress"]["update"] == 2
    resume_run(folder)
    assert checkpoint_of(folder)["progress"]["epoch"] == 1


def test_outside_slurm_the_run_is_only_saved(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    interrupted_run(tmp_path / "runs")
    assert not scontrol.exists()
    assert "not requeued: this is not a SLURM job" in capsys.readouterr().out


def test_a_task_of_an_array_requeues_only_itself(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("JOB_ID", "50"), ("ARRAY_JOB_ID", "50"), ("ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert slurm.requeue() == "requeued the SLURM job 50_3"
    assert scontrol.read_text() == "requeue 50_3\n"


def test_a_failing_scontrol_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.requeue().startswith("the SLURM job 1 was not requeued: ")
    stand_in(tmp_path, "scontrol", "echo Access denied >&2; exit 1")
    assert slurm.requeue() == "the SLURM job 1 was not requeued: Access denied"
    stand_in(tmp_path, "scontrol", "exec /bin/sleep 30")
    monkeypatch.setattr(slurm, "SECONDS", 0.01)
    assert "timed out" in slurm.requeue()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_load_images_survive_the_signal() -> None:
    with Interrupt() as interrupt:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert interrupt.signal is None


def sbatch_file() -> str:
    """Return the first sbatch file of the page."""
    page = (ROOT / "docs/cluster.md").read_text()
    found = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_documented_job_continues_its_run_after_a_requeue(tmp_path: Path) -> None:
    """Run the file twice, with a stand-in for srun that trains nothing but leaves a checkpoint."""
    (tmp_path / "job.sbatch").write_text(sbatch_file())
    made = "runs/12/2026-01-01_00-00-00_m_ab12/checkpoints"
    notes = stand_in(tmp_path / "bin", "srun", f"mkdir -p {made}; touch {made}/last.ckpt")
    paths = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": paths, "SLURM_JOB_ID": "12", "SLURM_NNODES": "2"}
    for _ in range(2):
        subprocess.run(["bash", "job.sbatch"], cwd=tmp_path, env=env, check=True)
    first, second = notes.read_text().splitlines()
    assert "train.out=runs/12" in first
    assert "train.num_nodes=2" in first
    assert "train.resume=runs/12/2026-01-01_00-00-00_m_ab12" in second
    assert "train.out" not in second
    assert "#SBATCH --signal=USR1@" in sbatch_file()
    assert "#SBATCH --requeue" in sbatch_file()
    words = [word for word in second.split() if "=" in word and not word.startswith("-")]
    assert all(word.partition("=")[0].startswith("train.") for word in words)
