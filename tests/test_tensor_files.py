"""Files of tensors: told by their content, read without code; everything else is one clear line."""

import collections
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

import zoo
from zoo import tensor_files

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def read(tmp_path, content: bytes, name="file.pth"):
    (tmp_path / name).write_bytes(content)
    return tensor_files.read(tmp_path / name)


def refusal(tmp_path, content: bytes, name="file.pth") -> str:
    with pytest.raises(zoo.BadWeights) as caught:
        read(tmp_path, content, name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    return str(caught.value)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value.numpy() for key, value in STATE.items()})
    return buffer.getvalue()


FORMATS = {
    "torch": saved(STATE),
    "torch before 1.6": saved(STATE, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(STATE),
    "npz": npz(),
    "zip with one file": zipped({"folder/a.pth": saved(STATE), "__MACOSX/._a.pth": b"x"}),
    "packed zip": zipped({"a.pth": saved(STATE)}, compression=zipfile.ZIP_DEFLATED),
    "zip with safetensors": zipped({"a.safetensors": safetensors.torch.save(STATE), "readme": b""}),
}


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors", "file", "file.zip"])
@pytest.mark.parametrize("form", FORMATS)
def test_the_content_tells_the_format(form, name, tmp_path):
    found = read(tmp_path, FORMATS[form], name)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


OTHERS = {
    b"<!DOCTYPE html><html>": "is a web page",
    b"  <html><body>": "is a web page",
    b"version https://git-lfs.github.com/spec/v1\noid": "pointer of Git LFS",
    b"\x1f\x8b\x08\x00" + bytes(20): "compressed with gzip",
    b"\x89HDF\r\n\x1a\n" + bytes(20): "HDF5",
    b'{"error": "rate limit"}': "not a checkpoint",
    zipped({"a.txt": b"x"}): "zip file with no checkpoint",
    zipped({"a.pth": FORMATS["torch"], "b.pth": FORMATS["torch"]}): "2 checkpoints (a.pth, b.pth)",
    zipped({"a.pth": zipped({"b.pth": FORMATS["torch"]})}): "not a checkpoint",
    zipped({"a.pth": bytes(1 << 27)}, compression=zipfile.ZIP_DEFLATED): "far more than its size",
    zipped({"a/data.pkl": b"", "a/constants.pkl": b""}): "TorchScript program",
    b"": "is empty",
}


@pytest.mark.parametrize(("content", "message"), [*OTHERS.items()], ids=[*OTHERS.values()])
def test_what_is_something_else_is_called_so(content, message, tmp_path):
    assert message in refusal(tmp_path, content)


def test_places_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path, message in (
        (tmp_path / "pipe.pth", "is not a file"),
        (tmp_path, "is not a file"),
        (tmp_path / "none\n.pth", "does not exist"),
        (tmp_path / ("a" * 300), "cannot be read"),
    ):
        with pytest.raises(zoo.BadWeights, match=message) as caught:
            tensor_files.read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["torch", "packed zip", "npz", "safetensors"])
def test_every_flipped_byte_of_the_values_is_noticed_where_there_are_sums(form, tmp_path):
    whole = FORMATS[form]
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        try:
            found = read(tmp_path, damaged)
        except zoo.BadWeights:
            continue
        if form != "safetensors":  # which has no sums
            assert all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_files_whose_writer_left_the_sums_out_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        content = saved(STATE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path, content).keys() == STATE.keys()


# --- objects of the authors' classes ------------------------------------------------------------


@pytest.fixture
def authors(monkeypatch):
    """A module of the authors that exists while a file is written, and raises if imported later."""
    module = types.ModuleType("utils.authors")

    class Meter:
        def __init__(self):
            self.history, self.best = [1, 2], {"top1": 71.3}

    class Config(dict):
        pass

    class Slots:
        __slots__ = ("a",)

    class State:
        def __getstate__(self):
            return ("x", 3)

        def __setstate__(self, state):
            raise AssertionError("the authors' code ran")

    Pair = collections.namedtuple("Pair", "a b")
    for kind in (Meter, Config, Slots, State, Pair):
        kind.__module__, kind.__qualname__ = "utils.authors", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "utils", types.ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "utils.authors", module)
    return module


def objects(module):
    slots = module.Slots()
    slots.a = 3
    config = module.Config(a=1)
    config.frozen = True
    return {
        "attributes": module.Meter(),
        "a dictionary with attributes": config,
        "slots": slots,
        "a state of its own": module.State(),
        "a named tuple": module.Pair(1, 2),
    }


@pytest.mark.parametrize("old", [False, True])
def test_objects_of_the_authors_do_not_run_and_do_not_matter(old, authors, tmp_path, monkeypatch):
    before = set(torch.serialization.get_safe_globals())
    for what, value in objects(authors).items():
        content = saved(
            {"state_dict": STATE, "recorder": value}, _use_new_zipfile_serialization=not old
        )
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "utils.authors")
            patch.delitem(sys.modules, "utils")
            found = read(tmp_path, content)
            assert "utils" not in sys.modules
        assert torch.equal(found["state_dict"]["weight"], STATE["weight"]), what
    assert set(torch.serialization.get_safe_globals()) == before


def test_values_that_training_scripts_save(tmp_path):
    import datetime

    content = {
        "model": STATE,
        "best": np.float64(71.3),
        "epoch": np.int64(4),
        "name": np.str_("x"),
        "history": np.arange(4.0),
        "mixed": np.array([1, "a"], dtype=object),
        "out": pathlib.PosixPath("/a/b"),
        "when": datetime.datetime(2020, 1, 2),
        "table": collections.defaultdict(list, a=[1]),
        "kind": int,
    }
    for old in (False, True):
        for numpy1 in (False, True):
            data = saved(content, _use_new_zipfile_serialization=False)
            data = data if old else saved(content)
            if numpy1 and old:
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
            found = read(tmp_path, data)
            assert (found["best"], found["epoch"], found["name"]) == (71.3, 4, "x")
            assert found["out"] == "/a/b" or found["out"] == "//a/b"


# --- pickles that would run code ----------------------------------------------------------------

MARK: list[str] = []


def touch(*args):
    MARK.append("ran")


class Bomb:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def bombs(victim):
    import builtins
    import runpy
    import shutil
    import subprocess

    yield Bomb(os.system, f"touch {victim}")
    yield Bomb(builtins.eval, f"open({str(victim)!r}, 'w')")
    yield Bomb(builtins.exec, f"open({str(victim)!r}, 'w')")
    yield Bomb(builtins.open, str(victim), "w")
    yield Bomb(builtins.__import__, "os")
    yield Bomb(builtins.getattr, pathlib.Path, "touch")
    yield Bomb(subprocess.Popen, ["touch", str(victim)])
    yield Bomb(subprocess.check_output, ["touch", str(victim)])
    yield Bomb(shutil.rmtree, str(victim.parent / "none"))
    yield Bomb(runpy.run_path, str(victim))
    yield Bomb(pathlib.Path.touch, pathlib.PosixPath(victim))
    yield Bomb(torch.hub.load, "a/b", "c")
    yield Bomb(torch.load, str(victim))
    yield Bomb(np.load, str(victim))
    yield Bomb(touch)  # a function of the authors
    yield Bomb(zoo.create_model, "cct_2_3x2_32")


@pytest.mark.parametrize("old", [False, True])
def test_pickles_that_would_run_code_are_refused(old, tmp_path):
    victim = tmp_path / "ran"
    for number, bomb in enumerate(bombs(victim)):
        for content in (bomb, {"state_dict": STATE, "x": bomb}, {"state_dict": {"a": bomb}}):
            data = saved(content, _use_new_zipfile_serialization=not old)
            message = refusal(tmp_path, data)
            assert "more than weights" in message, (number, message)
    assert not victim.exists()
    assert not MARK


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles_are_refused(protocol, tmp_path):
    for bomb in bombs(tmp_path / "ran"):
        refusal(tmp_path, pickle.dumps({"a": bomb}, protocol))
    assert not (tmp_path / "ran").exists()
    assert not MARK


def test_crafted_pickles_do_not_reach_code_by_other_operations(tmp_path):
    """Opcodes that call, build or extend without REDUCE; names that are not identifiers."""
    for body in (
        b"(S'touch x'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch x'\no.",  # OBJ
        b"\x80\x02cutils\nRun\n)R.",  # a call of the same
        b"\x80\x02cutils.a b\nRun\n)\x81.",
        b"\x80\x02cposix\nsystem\n)\x81.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(U\x08__code__Nub.",
        b"\x80\x02cargparse\nNamespace\n}(U\x01aNubb.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02]q\x00h\x00a.",
        b"\x82\x01.",  # EXT1
    ):
        data = zipped({"a/data.pkl": body, "a/version": b"3\n", "a/byteorder": b"little"})
        message = refusal(tmp_path, data)
        assert "weights" in message or "not a checkpoint" in message
