"""Phases and progress bars: silent in the library, one line per phase in a log."""

import io
import sys

import pytest

from zoo import progress
from zoo.environment import quiet
from zoo.progress import phase, progress_bar, show, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _first_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_the_library_is_silent(capsys):
    with phase("tracing"):
        assert list(track(range(3), "calibrating")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_log_has_one_line_for_each_phase():
    stream = io.StringIO()
    with show(stream):
        with phase("tracing"):
            assert list(track(iter("ab"), "calibrating", total=2)) == ["a", "b"]
        with progress_bar("fetching x.pth", 3_000_000, "bytes") as advance:
            advance(1000)
    assert stream.getvalue().splitlines() == [
        "[00:00] tracing",
        "[00:00] calibrating (2)",
        "[00:00] fetching x.pth (3.0 MB)",
    ]
    with phase("afterwards"):
        pass
    assert "afterwards" not in stream.getvalue()


def test_a_long_loop_writes_a_line_each_minute():
    stream, now = io.StringIO(), [0.0]
    lines = progress._Lines(stream, clock=lambda: now[0])
    task = lines.start("calibrating", 256, "")
    for seconds in (30, 61, 62, 130):
        now[0] = seconds
        lines.advance(task, 10)
    assert stream.getvalue().splitlines() == [
        "[00:00] calibrating (256)",
        "[01:01] calibrating: 20 of 256",
        "[02:10] calibrating: 40 of 256",
    ]


def test_a_terminal_keeps_a_line_for_each_finished_phase():
    stream = Terminal()
    with show(stream):
        with phase("tracing [bold]"):
            list(track(range(1500), "calibrating"))
        with pytest.raises(KeyError), phase("comparing"):
            raise KeyError
    assert "calibrating 1,500 in 0." in stream.getvalue()
    assert "tracing [bold] in 0." in stream.getvalue()
    assert "comparing in" not in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_phases_show_what_quiet_suppresses_stays_suppressed(stream, monkeypatch):
    stream = stream()
    monkeypatch.setattr(sys, "stderr", stream)
    with show(), quiet(), phase("tracing"):
        print("noise")
        print("noise", file=sys.stderr)
    assert "tracing" in stream.getvalue()
    assert "noise" not in stream.getvalue()


def test_results_in_a_pipe_do_not_go_to_the_terminal(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    with show(Terminal()), phase("counting"):
        print("result")
    assert pipe.getvalue() == "result\n"


def test_only_the_first_process_writes(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stream = io.StringIO()
    with show(stream), phase("tracing"):
        pass
    assert stream.getvalue() == ""


def test_a_stream_that_cannot_write_does_not_end_the_work():
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with show(Closed()), phase("tracing"):
        pass
    latin = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with show(latin), phase("reading ü.jpg"):
        pass
