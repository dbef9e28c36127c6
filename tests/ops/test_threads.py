"""parallel_for: every item exactly once, on a suitable number of threads."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from zoo.ops.threads import parallel_for


@pytest.mark.parametrize(
    ("count", "threads", "min_per_thread", "parts"),
    [(10, 1, 1, 1), (10, 4, 1, 4), (3, 8, 1, 3), (10, 4, 4, 2), (10, 4, 11, 1), (0, 4, 1, 1)],
)
def test_every_item_is_processed_once(count, threads, min_per_thread, parts, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done, lock = [], threading.Lock()

    def kernel(first, last, tag):
        with lock:
            done.append((range(first, last), tag, threading.get_ident()))

    parallel_for(kernel, count, ("x",), min_per_thread)
    assert sorted(item for part, _, _ in done for item in part) == list(range(count))
    assert len(done) == parts
    assert {tag for _, tag, _ in done} == {"x"}
    here = [part for part, _, ident in done if ident == threading.get_ident()]
    assert here == [range(0, count // parts)], "the calling thread processes the first part"


@pytest.mark.parametrize("bad", [0, 3])
def test_an_error_in_any_part_is_raised(bad, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def kernel(first, last):
        if first <= bad < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parallel_for(kernel, 4, ())


FORKED = """
import os, torch
from zoo.ops.threads import parallel_for
torch.get_num_threads = lambda: 2
done = []
parallel_for(lambda a, b: done.append(a), 4, ())
child = os.fork()
if not child:
    parallel_for(lambda a, b: done.append(a), 4, ())
    os._exit(len(done) != 4)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or len(done) != 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_starts_its_own_threads():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
