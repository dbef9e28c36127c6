"""ONNX Runtime, on a CPU or on CUDA."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.errors import BadInput, MissingExtra, first_line

_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}


class OnnxRuntime:
    """An ONNX file in ONNX Runtime on the CPU."""

    name = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    provider: ClassVar[str] = "CPUExecutionProvider"
    device = "cpu"

    def __init__(
        self,
        artefact: Path,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        import onnxruntime as ort

        self.version = ort.__version__
        self.threads = threads
        self.layout = "NCHW"
        self.dtype = "float32"
        self.fused = fused
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin on after a call cost nothing here, but slow whatever is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        begin = time.perf_counter()
        try:
            self.session = ort.InferenceSession(artefact, options, providers=[self.provider])
        except Exception as error:  # its exceptions have no public common base
            raise BadInput(f"ONNX Runtime cannot load {artefact}: {first_line(error)}") from error
        self.load_s = time.perf_counter() - begin
        self.input = self.session.get_inputs()[0]

    @classmethod
    def check_machine(cls) -> None:
        """Raise `MissingExtra` unless this build of ONNX Runtime has the provider."""
        import onnxruntime as ort

        if cls.provider not in ort.get_available_providers():
            raise MissingExtra(
                f"runtime {cls.name!r} needs {cls.provider}: pip install onnxruntime-gpu on a "
                "machine with a GPU"
            )

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        batch = batch.astype(_TYPES[self.input.type], copy=False)
        return functools.partial(self.session.run, None, {self.input.name: batch})

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(output, np.float32) for output in self.bind(batch)()]

    def held(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class OnnxRuntimeCuda(OnnxRuntime):
    """An ONNX file in ONNX Runtime on the first GPU; times include copying in and out."""

    name = "onnxruntime-cuda"
    provider = "CUDAExecutionProvider"
    device = "cuda:0"
