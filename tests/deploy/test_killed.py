"""An export that is killed leaves no incomplete artefact under the final name."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from torch import nn

import zoo
from zoo.deploy import atomic_output, files, publishing, torchscript

# Forks a child for each moment, which kills itself at that moment.
CODE = """
import os, signal, sys, pathlib, torch, zoo
from zoo.deploy import atomic_output, files, manifest, pipeline, torchscript
from zoo.runtimes import programs

torch.set_num_threads(1)
net = torch.nn.Conv2d(3, 4, 3).eval()


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(model, file, spec):
    with open(file, "wb") as opened:
        opened.write(b"PK" * 1000)
        opened.flush()
        die()


def at(module, name, function):
    setattr(module, name, function)


MOMENTS = {
    "before writing": lambda: at(torchscript, "convert", die),
    "half written": lambda: at(torchscript, "convert", half_written),
    "when reloaded": lambda: at(programs.TorchScript, "__init__", die),
    "before the manifest": lambda: at(manifest, "write", die),
    "before publishing": lambda: at(atomic_output, "publish", die),
}
for number, (moment, arrange) in enumerate(MOMENTS.items()):
    child = os.fork()
    if child == 0:
        arrange()
        out = os.path.join(sys.argv[1], str(number))
        zoo.export(net, "torchscript", out, input_size=(1, 3, 8, 8))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(moment, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "lived", flush=True)
"""


def test_killed_at_several_moments(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    moments = done.stdout.splitlines()
    assert len(moments) == 5, done.stderr
    net = nn.Conv2d(3, 4, 3).eval()
    for number, moment in enumerate(moments):
        assert moment.endswith(f" {int(signal.SIGKILL)}"), moment
        out = tmp_path / str(number)
        left = os.listdir(out)
        assert left, moment
        assert all(name.startswith((".partial-", ".export.lock")) for name in left), moment
        made = zoo.export(net, "torchscript", out, input_size=(1, 3, 8, 8))
        assert files.read(made.path), moment
        assert sorted(os.listdir(out)) == ["manifest.json", "model.pt"]


class Killed(BaseException):
    """Simulates the signal: no handler catches it."""


def write(folder, names, content):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    "names", [["model.xml", "model.bin"], ["model.onnx"]], ids=["two files", "one file"]
)
@pytest.mark.parametrize("moment", range(10))
def test_killed_while_files_are_replaced(names, moment, tmp_path, monkeypatch):
    """The old artefact or the new one is whole for whoever reads it, never a mixture."""
    out, draft = tmp_path / "out", tmp_path / "out" / ".partial-1"
    write(out, [*names, files.MANIFEST, "sensitivity.csv"], "old")
    write(draft, [*names, files.MANIFEST, "quantization.json"], "new")
    done = []

    def counted(function):
        def act(*args):
            if len(done) == moment:
                raise Killed
            done.append(args)
            return function(*args)

        return act

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(publishing, "_remove", counted(publishing._remove))
    with contextlib.suppress(Killed):
        atomic_output.publish(draft, out / names[0], ["quantization.json"], overwrite=True)
    monkeypatch.undo()
    # As other programs see it: a manifest is that of the files, or there is none.
    contents = {p.read_text() for name in names if (p := out / name).exists()}
    assert len(contents) <= 1
    if (out / files.MANIFEST).exists():
        assert contents == {(out / files.MANIFEST).read_text()}
    publishing.recover(out)
    contents = {p.name: p.read_text() for p in out.iterdir() if p.is_file()}
    assert set(contents.values()) in ({"old"}, {"new"})
    report = "quantization.json" if "new" in contents.values() else "sensitivity.csv"
    assert set(contents) == {*names, files.MANIFEST, report}
    assert not (out / ".publish").exists()


def test_a_folder_is_replaced_by_renaming(tmp_path):
    out, draft = tmp_path / "out", tmp_path / "out" / ".partial-1"
    for parent, content in ((out, "old"), (draft, "new")):
        (parent / "model.mlpackage").mkdir(parents=True)
        (parent / "model.mlpackage" / "weights").write_text(content)
        (parent / files.MANIFEST).write_text(json.dumps({}))
    atomic_output.publish(draft, out / "model.mlpackage", overwrite=True)
    assert (out / "model.mlpackage" / "weights").read_text() == "new"


@pytest.mark.parametrize("plan", ["", "[]", "3", '["../x", "manifest.json"]', '[".."]'])
def test_a_folder_that_only_looks_like_a_replacement_moves_nothing(plan, tmp_path):
    (tmp_path / ".publish").mkdir()
    (tmp_path / ".publish" / "plan.json").write_text(plan)
    (tmp_path / files.MANIFEST).write_text("{}")
    with pytest.raises(zoo.BadInput, match="was not written by an export; remove it"):
        files.read(tmp_path)
    assert (tmp_path / files.MANIFEST).read_text() == "{}"


def test_of_two_exports_into_one_folder_one_is_refused(tmp_path, monkeypatch):
    net = nn.Conv2d(3, 4, 3).eval()
    options = {"input_size": (1, 3, 8, 8), "overwrite": True}
    real, messages = torchscript.convert, []

    def convert(*args):
        with pytest.raises(zoo.BadInput) as caught:  # the second starts while the first works
            zoo.export(net, "pt2", tmp_path, **options)
        messages.append(str(caught.value))
        real(*args)

    monkeypatch.setattr(torchscript, "convert", convert)
    zoo.export(net, "torchscript", tmp_path, **options)
    assert messages == [
        f"another export is writing to {tmp_path}; wait until it ends, or choose another folder"
    ]
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "model.pt"]


def test_a_file_that_appears_during_the_export_is_not_replaced(tmp_path, monkeypatch):
    real = torchscript.convert

    def convert(*args):
        (tmp_path / "model.pt").write_text("from elsewhere")
        real(*args)

    monkeypatch.setattr(torchscript, "convert", convert)
    with pytest.raises(zoo.BadInput, match=r"model\.pt exists; export\.overwrite=true replaces it"):
        zoo.export(nn.Conv2d(3, 4, 3).eval(), "torchscript", tmp_path, input_size=(1, 3, 8, 8))
    assert (tmp_path / "model.pt").read_text() == "from elsewhere"
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("hidden", [False, True], ids=["said", "hidden by the runtime"])
def test_a_full_disk_is_named_and_the_old_artefact_stays(hidden, tmp_path, monkeypatch):
    net = nn.Conv2d(3, 4, 3).eval()
    options = {"input_size": (1, 3, 8, 8), "overwrite": True}
    zoo.export(net, "torchscript", tmp_path, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def convert(model, file, spec):
        file.write_bytes(b"PK")
        if hidden:
            usage = shutil.disk_usage(tmp_path)._replace(free=0)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torchscript, "convert", convert)
    with pytest.raises(zoo.BadInput, match="cannot write to .*(disk is full|No space left)"):
        zoo.export(net, "torchscript", tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
