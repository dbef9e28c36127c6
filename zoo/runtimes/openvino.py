"""OpenVINO on a CPU."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from zoo.errors import BadInput, first_line

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@functools.cache
def core() -> Any:
    """Return this process's `openvino.Core`, its CPU plugin loaded.

    It stays until the process ends. Each core makes a stack for signal handlers, and one that goes
    after a later one has come leaves the process with a stack that is freed: the next signal that
    Python handles (Ctrl-C, the end of a data loader's worker) would kill the process.
    """
    import openvino

    made = openvino.Core()
    made.get_property("CPU", "FULL_DEVICE_NAME")
    return made


class OpenVino:
    """An OpenVINO or ONNX file on the CPU.

    OpenVINO by itself computes in bfloat16 where the processor can; here it computes in the type
    that is asked for, float32 if none is.
    """

    name = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    layouts: ClassVar[tuple[str, ...]] = ("NCHW",)
    dtypes: ClassVar[tuple[str, ...]] = tuple(_PRECISIONS)
    suffixes: ClassVar[tuple[str, ...]] = (".onnx", ".xml")

    def __init__(
        self,
        artefact: Path,
        *,
        threads: int,
        dtype: str | None,
        channels_last: bool,
        fused: bool | None,
    ) -> None:
        import openvino

        self.version = openvino.__version__
        self.threads = threads
        self.layout = "NCHW"
        self.device = "cpu"
        self.dtype = dtype or "float32"
        self.fused = fused
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.dtype],
        }
        known = core()
        begin = time.perf_counter()
        try:
            self.model = known.compile_model(str(artefact), "CPU", settings)
        except RuntimeError as error:
            raise BadInput(f"OpenVINO cannot load {artefact}: {first_line(error)}") from error
        self.load_s = time.perf_counter() - begin

    @classmethod
    def check_machine(cls) -> None:
        """OpenVINO runs wherever it is installed."""

    def bind(self, batch: np.ndarray) -> Callable[[], Any]:
        import openvino

        request = self.model.create_infer_request()
        wanted = self.model.inputs[0].get_element_type().to_dtype()
        tensor = openvino.Tensor(np.ascontiguousarray(batch, wanted), shared_memory=True)
        request.set_input_tensor(tensor)
        # What shares its memory must outlive the calls.
        return lambda tensor=tensor: request.infer()

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        results = self.bind(batch)()
        return [np.asarray(results[port], np.float32) for port in self.model.outputs]

    def held(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
