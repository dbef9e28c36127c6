"""PyTorch -> machine code (`.aoti.pt2`), compiled ahead of time by Inductor and a C++ compiler.

The file needs the version of PyTorch and the kind of processor that it was compiled with.
"""

import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import quiet
from zoo.errors import MissingExtra, NotExportable

PACKAGES = ()
INPUT = "input"
COMPILERS = ("g++", "clang++", "c++", "cl")


def convert(model: nn.Module, file: Path, spec: ExportSpec) -> None:
    """Write `model`, in evaluation mode, to `file`.

    Raises:
        BadInput: The model does not run at this size.
        MissingExtra: No C++ compiler is installed.
        NotExportable: The model cannot be traced or compiled.
    """
    if not any(map(shutil.which, COMPILERS)):
        raise MissingExtra("format 'aoti' needs a C++ compiler; install g++ or clang++")
    program = tracing.trace(model, spec, "compiled code")
    dtype = "uint8" if getattr(model, "takes_pixels", False) else "float32"
    try:
        with quiet(), tracing.without_size_one_assumptions(spec.dynamic_size):
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(file),
                inductor_configs={"aot_inductor.metadata": {"zoo_input": dtype}},
            )
    except Exception as error:  # Inductor and the compiler raise errors of many classes
        raise NotExportable(
            f"{tracing.model_name(model)} cannot be compiled ahead of time: "
            f"{tracing.root_cause(error)}"
        ) from error


def describe(file: Path) -> dict[str, Any]:
    """Return the architecture and the instruction set of the machine that the file is for."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"machine": platform.machine(), "instructions": capability}
