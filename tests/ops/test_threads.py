"""Sharing out units of work: each exactly once, on as many threads as are worth it."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from zoo.ops.threads import share_out


@pytest.mark.parametrize(
    ("units", "threads", "least", "parts"),
    [(10, 1, 1, 1), (10, 4, 1, 4), (3, 8, 1, 3), (10, 4, 4, 2), (10, 4, 11, 1), (0, 4, 1, 1)],
)
def test_every_unit_once(units, threads, least, parts, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done, lock = [], threading.Lock()

    def kernel(first, last, tag):
        with lock:
            done.append((range(first, last), tag, threading.get_ident()))

    share_out(kernel, units, ("x",), least)
    assert sorted(unit for part, _, _ in done for unit in part) == list(range(units))
    assert len(done) == parts
    assert {tag for _, tag, _ in done} == {"x"}
    here = [part for part, _, ident in done if ident == threading.get_ident()]
    assert here == [range(0, units // parts)], "the caller takes the first part itself"


@pytest.mark.parametrize("bad", [0, 3])
def test_an_error_in_any_part_is_raised(bad, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def kernel(first, last):
        if first <= bad < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share_out(kernel, 4, ())


FORKED = """
import os, torch
from zoo.ops.threads import share_out
torch.get_num_threads = lambda: 2
done = []
share_out(lambda a, b: done.append(a), 4, ())
child = os.fork()
if not child:
    share_out(lambda a, b: done.append(a), 4, ())
    os._exit(len(done) != 4)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or len(done) != 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_its_own_threads():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
