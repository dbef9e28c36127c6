"""Compiled kernels on several threads: each takes a range of units of work and frees the lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="zoo")


# Threads do not survive a fork: the child starts its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def share_out(
    kernel: Callable[..., Any], units: int, arguments: tuple[Any, ...], least: int = 1
) -> None:
    """Run `kernel(first, last, *arguments)` over all units, on the threads that PyTorch may use.

    Args:
        kernel: Works on the units from `first` to before `last`, without Python's lock.
        units: How many units of work there are.
        arguments: What else the kernel takes.
        least: Units that are worth a thread of their own.
    """
    threads = max(1, min(torch.get_num_threads(), units // least))
    cuts = [units * i // threads for i in range(threads + 1)]
    others = [_pool().submit(kernel, cuts[i], cuts[i + 1], *arguments) for i in range(1, threads)]
    kernel(cuts[0], cuts[1], *arguments)
    for other in others:
        other.result()
