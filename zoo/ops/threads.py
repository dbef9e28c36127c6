"""Run compiled kernels on several threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="zoo")


# Threads do not survive a fork: the child process starts its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def parallel_for(
    kernel: Callable[..., Any], count: int, arguments: tuple[Any, ...], min_per_thread: int = 1
) -> None:
    """Call `kernel(start, stop, *arguments)` on parts of `range(count)`, one part per thread.

    It uses at most as many threads as PyTorch.

    Args:
        kernel: Function that processes the items from `start` to `stop` - 1. To run in parallel it
            must release the global interpreter lock.
        count: Number of items.
        arguments: Further arguments of `kernel`.
        min_per_thread: Number of items below which another thread is not worth its cost.
    """
    threads = max(1, min(torch.get_num_threads(), count // min_per_thread))
    cuts = [count * i // threads for i in range(threads + 1)]
    others = [_pool().submit(kernel, cuts[i], cuts[i + 1], *arguments) for i in range(1, threads)]
    kernel(cuts[0], cuts[1], *arguments)
    for other in others:
        other.result()
