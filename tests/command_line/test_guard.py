"""Whatever a command raises is one line, with an exit code and, if unforeseen, a log file."""

import errno
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from zoo.command_line import guard
from zoo.errors import BadInput, folder_noted


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "zoo"


def run(error: BaseException, capsys) -> tuple[int, str]:
    def fail():
        raise error

    code = guard.run(fail)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BadInput("train.lr=-1 must be\ngreater"), "error: train.lr=-1 must be greater\n"),
        (MemoryError("Unable to allocate 3 GiB"), "error: out of memory; use a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory."), "error: out of memory; use a smaller"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of"),
        (SystemExit("error: stop"), "error: stop\n"),
    ],
)
def test_foreseen_errors_are_one_line_without_a_log(error, message, capsys, state):
    code, printed = run(error, capsys)
    assert code == 1
    assert printed.startswith(message)
    assert printed.count("\n") == 1
    assert not state.exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("head"), "error: unexpected KeyError: 'head' (traceback in "),
        (ValueError("a\nb"), "error: unexpected ValueError: a (traceback in "),
        (ZeroDivisionError(), "error: unexpected ZeroDivisionError: ZeroDivisionError (traceback"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied (traceback"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "error: /x/y: No space left on"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "error: x: File name too long ("),
        (RecursionError("maximum recursion depth exceeded"), "error: something is nested too"),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates"), "error: unexpected UnicodeE"),
        (AssertionError(), "error: unexpected AssertionError"),
    ],
)
def test_the_unforeseen_is_one_line_and_a_log(error, message, capsys, state):
    code, printed = run(error, capsys)
    assert code == 1
    assert printed.startswith(message)
    assert printed.count("\n") == 1
    (log,) = state.iterdir()
    assert str(log) in printed
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert type(error).__name__ in text
    assert "torch " in text


def test_the_log_of_a_run_is_in_its_folder(tmp_path, capsys, state):
    def fail():
        with folder_noted(tmp_path / "run"):
            raise KeyError("head")

    (tmp_path / "run").mkdir()
    assert guard.run(fail) == 1
    (log,) = (tmp_path / "run").glob("error-*.log")
    assert f"traceback in {log}" in capsys.readouterr().err
    assert not state.exists()


def test_without_a_folder_to_write_to_the_log_is_a_temporary_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    code, printed = run(KeyError("head"), capsys)
    assert code == 1
    assert f"traceback in {tmp_path / 'temporary'}" in printed


def test_without_any_folder_it_is_still_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    code, printed = run(KeyError("head"), capsys)
    assert code == 1
    assert "its traceback could not be written to a file" in printed


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(3), 3), (SystemExit(None), 0)],
)
def test_interruptions_are_quiet(error, code, capsys):
    assert run(error, capsys) == (code, "")


@pytest.mark.parametrize(("result", "code"), [(None, 0), (2, 2), (True, 0), ({"top1": 1}, 0)])
def test_an_integer_is_the_exit_code(result, code):
    assert guard.run(lambda: result) == code


def test_warnings_of_packages_are_one_line(capsys):
    def warn():
        warnings.simplefilter("default")
        warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("for developers", DeprecationWarning, stacklevel=1)

    before = warnings.showwarning
    assert guard.run(warn) == 0
    assert capsys.readouterr().err == "warning: two lines\n"
    assert warnings.showwarning is before


def test_a_terminal_that_cannot_encode_a_name_gets_it_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert guard.run(lambda: print("ü.jpg")) == 0
    assert terminal.buffer.getvalue() == b"\\xfc.jpg\n"


COMMAND = "import sys; from zoo.cli import execute; sys.exit(execute(['list']))"


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_output_is_one_line(state):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    message = "error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert not state.exists()


def test_a_command_says_at_once_that_it_loads_pytorch():
    code = "from zoo.cli import execute; execute(['count', 'simplenet_cifar_310k'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == "[00:00] count: loading PyTorch"
    assert done.stdout.startswith("simplenet_cifar_310k, unfused")
