"""What every runtime offers, and what the code around them has in common; imports no torch."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Runtime(Protocol):
    """A loaded model that can be called and timed.

    Attributes:
        name: The name under which `load` knows it.
        version: The version of the software that executes.
        threads: Threads that share one call.
        dtype: The type in which the model computes.
        layout: `"NCHW"` or `"NHWC"`, the order of the images in memory; shapes are always B C H W.
        device: Where it computes, as torch names it.
        fused: Whether the model was re-parameterised; None where nothing tells.
        load_s: Seconds that preparing took: building the session, reading and optimising the graph.
    """

    name: str
    version: str
    threads: int
    dtype: str
    layout: str
    device: str
    fused: bool | None
    load_s: float

    @classmethod
    def check_machine(cls) -> None:
        """Raise `MissingExtra` where the packages are there but this machine cannot run it."""
        ...

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        """Return a call of the model on `batch` (B C H W, float32) and on nothing else."""
        ...

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run on `batch` (B C H W, float32) and return every output in float32."""
        ...

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the process-wide settings that this runtime needs while it is called."""
        ...
