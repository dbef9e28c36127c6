"""Printed commands: the shell and Hydra together read exactly what was meant."""

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from zoo.quoting import command_line, hydra, program, shell

TEXTS = [
    "runs/2026-01-01_emo_1m_3f2a",
    "lr=0.1",
    "runs (9)",
    "epoch=3-step=100.ckpt",
    "a b",
    "a,b",
    "[1,2]",
    "{a:1}",
    "007",
    "1e5",
    "-1",
    ".5",
    "true",
    "null",
    "NaN",
    "it's",
    'say "hi"',
    "back\\slash",
    "ends\\",
    "odd\\'quote",
    "'both\" kinds'",
    "ümlaut/日本",
    "foto_ü",
    "$HOME",
    "a`b`",
    "!x",
    "#x",
    "x#y",
    "~/data",
    "a:b",
    "",
    " edge ",
    "tab\there",
    "100%",
    "a|b;c&d",
    "*",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_shell_and_hydra_read_what_was_meant(text):
    line = command_line("eval", {"weights": text})
    words = shlex.split(line)
    assert words[:2] == ["zoo", "eval"]
    (override,) = OverridesParser.create().parse_overrides(words[2:])
    value = override.value()
    assert getattr(value, "text", value) == text
    assert type(value).__name__ in ("str", "QuotedString")


def test_a_real_shell_agrees():
    words = [shell(text) for text in TEXTS]
    script = "for word in " + " ".join(words) + "; do printf '%s\\0' \"$word\"; done"
    read = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert read.decode().split("\0")[:-1] == TEXTS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (0.5, "0.5"),
        ([224, 320], "[224,320]"),
        ({"a": "x y"}, "{a:'x y'}"),
        ("timm/vit_tiny", "timm/vit_tiny"),
    ],
)
def test_values(value, text):
    assert hydra(value) == text


@pytest.mark.parametrize(
    ("started", "command", "begin"),
    [
        ("/usr/bin/zoo", "eval", "zoo eval"),
        ("/lib/zoo/__main__.py", "eval", "python -m zoo eval"),
        ("train.py", "eval", "python eval.py"),
        ("/clone/train.py", "predict", "python -m zoo predict"),
    ],
)
def test_the_program_is_the_one_that_runs(started, command, begin, monkeypatch):
    monkeypatch.setattr("sys.argv", [started])
    assert program(command) == begin


def test_words_come_before_settings():
    assert command_line("report", {"out": "a b"}, "x y") == """zoo report 'x y' "out='a b'\""""
