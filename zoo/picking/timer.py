"""Time candidates on this machine, with random weights: the weights do not affect the time."""

import contextlib
import importlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo import runtimes
from zoo.compression import int8
from zoo.compression.recipe import Recipe
from zoo.deploy.pipeline import convert
from zoo.deploy.spec import ExportSpec
from zoo.environment import quiet
from zoo.factory import create_model
from zoo.picking.candidates import FORMATS, Candidate
from zoo.picking.search import Calls
from zoo.profiling.latency import random_batch
from zoo.profiling.layers import Roofline, measure_roofline
from zoo.profiling.timing import garbage_collector_paused, warm_up
from zoo.reparam import reparameterize

WARM_UP_S = 1.0  # longest warm-up
CALIBRATION = 2  # random images that the ranges of int8 are computed from


class MachineTimer:
    """Builds, fuses, exports and times candidates.

    Args:
        threads: Number of threads per call.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @contextlib.contextmanager
    def open(self, candidate: Candidate) -> Iterator[Calls]:
        """Build and warm up a candidate; the context gives the function that times its calls.

        Raises:
            ZooError: It cannot be built, exported or loaded.
        """
        with tempfile.TemporaryDirectory() as folder:
            loaded = self._load(candidate, Path(folder))
        with loaded.process_settings():
            call = loaded.bind(random_batch(candidate.input_size))
            warm_up(call, time.perf_counter, WARM_UP_S)
            yield lambda count: _time(call, count)

    def _load(self, candidate: Candidate, folder: Path) -> runtimes.Runtime:
        model = create_model(candidate.model).eval()
        with quiet():
            model = reparameterize(model)
        suffix = runtimes.artefact_suffix(candidate.runtime)
        if suffix is None:
            return runtimes.load(model, candidate.runtime, threads=self.threads)
        file = folder / f"model{suffix}"
        if candidate.int8:
            _quantize(model, file, candidate)
        else:
            convert(model, file, input_size=candidate.input_size, dynamic_batch=False)
        return runtimes.load(file, candidate.runtime, fused=True, threads=self.threads)


def limits(threads: int) -> Roofline:
    """Measure how fast this machine multiplies matrices and copies memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure_roofline(torch.zeros(1))
    finally:
        torch.set_num_threads(before)


def _quantize(model: nn.Module, file: Path, candidate: Candidate) -> None:
    quantizer: Any = importlib.import_module(int8.MODULES[FORMATS[candidate.runtime]])
    batch = random_batch(candidate.input_size)
    spec = ExportSpec(candidate.input_size, dynamic_batch=False)
    quantizer.convert(model, file, spec, [batch] * CALIBRATION, Recipe())


def _time(call: Any, count: int) -> np.ndarray:
    times = np.empty(count)
    with garbage_collector_paused():
        for i in range(count):
            begin = time.perf_counter()
            call()
            times[i] = time.perf_counter() - begin
    return 1e3 * times
