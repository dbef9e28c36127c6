"""An export that is killed leaves no incomplete artefact under the final name."""

import json
import os
import signal
import subprocess
import sys

import pytest
from torch import nn

import zoo
from zoo.deploy import atomic_output, files

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
        assert all(name.startswith(".partial-") for name in left), moment
        made = zoo.export(net, "torchscript", out, input_size=(1, 3, 8, 8))
        assert files.read(made.path), moment


class Killed(BaseException):
    """Simulates the signal: no handler catches it."""


def write(folder, names, content):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    "names", [["model.xml", "model.bin"], ["model.onnx"]], ids=["two files", "one file"]
)
@pytest.mark.parametrize("moment", range(6))
def test_replaced_files_are_never_mixed(names, moment, tmp_path, monkeypatch):
    """Killed after `moment` renamings: never new weights with an old graph, or a wrong manifest."""
    out, draft = tmp_path / "out", tmp_path / "out" / ".partial-1"
    write(out, [*names, files.MANIFEST], "old")
    write(draft, [*names, files.MANIFEST], "new")
    renamed, rename = [], os.replace

    def counted(*paths):
        if len(renamed) == moment:
            raise Killed
        renamed.append(paths)
        rename(*paths)

    monkeypatch.setattr(os, "replace", counted)
    try:
        atomic_output.publish(draft, out / names[0])
        killed = False
    except Killed:
        killed = True
    contents = {name: (out / name).read_text() for name in names if (out / name).exists()}
    assert len(set(contents.values())) <= 1
    assert (out / files.MANIFEST).exists() == (not killed)
    if not killed:
        assert contents == dict.fromkeys(names, "new")


def test_a_folder_is_replaced_by_renaming(tmp_path):
    out, draft = tmp_path / "out", tmp_path / "out" / ".partial-1"
    for parent, content in ((out, "old"), (draft, "new")):
        (parent / "model.mlpackage").mkdir(parents=True)
        (parent / "model.mlpackage" / "weights").write_text(content)
        (parent / files.MANIFEST).write_text(json.dumps({}))
    atomic_output.publish(draft, out / "model.mlpackage")
    assert (out / "model.mlpackage" / "weights").read_text() == "new"
    assert (draft / "replaced-model.mlpackage" / "weights").read_text() == "old"
