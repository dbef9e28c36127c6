"""OpenVINO on a CPU."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.runtimes.base import FileRuntime

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@functools.cache
def core() -> Any:
    """Return this process's only `openvino.Core`, with its CPU plugin loaded.

    It is never deleted. Each core installs a stack for signal handlers. If a core is deleted after
    a later one was created, the process keeps a freed stack, and the next signal (Ctrl-C, the end
    of a data loader's worker) kills it.
    """
    import openvino

    created = openvino.Core()
    created.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return created


class OpenVino(FileRuntime):
    """An OpenVINO or ONNX file in OpenVINO on the CPU.

    It computes in `dtype`. OpenVINO's own default is bfloat16 on processors that support it.
    """

    name = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    dtypes: ClassVar[tuple[str, ...]] = tuple(_PRECISIONS)
    suffixes: ClassVar[tuple[str, ...]] = (".onnx", ".xml")

    def _start(self) -> str:
        import openvino

        core()
        return openvino.__version__

    def _load(self, file: Path) -> None:
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.dtype],
        }
        self.model = core().compile_model(str(file), "CPU", settings)
        axes = self.model.inputs[0].get_partial_shape()
        self.shape = tuple(None if axis.is_dynamic else axis.get_length() for axis in axes)

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        import openvino

        request = self.model.create_infer_request()
        dtype = self.model.inputs[0].get_element_type().to_dtype()
        tensor = openvino.Tensor(np.ascontiguousarray(batch, dtype), shared_memory=True)
        request.set_input_tensor(tensor)
        # The default argument keeps the tensor, whose memory the request reads, alive.
        return lambda tensor=tensor: request.infer()

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        results = self.bind(batch)()
        return [np.asarray(results[port], np.float32) for port in self.model.outputs]
