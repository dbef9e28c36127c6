"""ONNX Runtime on a CPU or on CUDA."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.errors import MissingExtra
from zoo.runtimes.base import FileRuntime

_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}


class OnnxRuntime(FileRuntime):
    """An ONNX file in ONNX Runtime on the CPU."""

    name = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    provider: ClassVar[str] = "CPUExecutionProvider"

    def _start(self) -> str:
        import onnxruntime

        return onnxruntime.__version__

    def _load(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Otherwise threads keep spinning after a call, which slows down whatever is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(file, options, providers=[self.provider])
        self.input = self.session.get_inputs()[0]
        self.shape = tuple(n if isinstance(n, int) else None for n in self.input.shape)

    @classmethod
    def check_machine(cls) -> None:
        """Raise `MissingExtra` if the installed build of ONNX Runtime lacks the provider."""
        import onnxruntime

        if cls.provider not in onnxruntime.get_available_providers():
            raise MissingExtra(
                f"runtime {cls.name!r} needs {cls.provider}: pip install onnxruntime-gpu on a "
                "machine with a GPU"
            )

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        batch = batch.astype(_TYPES[self.input.type], copy=False)
        return functools.partial(self.session.run, None, {self.input.name: batch})

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(output, np.float32) for output in self.bind(batch)()]


class OnnxRuntimeCuda(OnnxRuntime):
    """An ONNX file in ONNX Runtime on the first GPU; calls include copies to the GPU and back."""

    name = "onnxruntime-cuda"
    provider = "CUDAExecutionProvider"
    device = "cuda:0"
