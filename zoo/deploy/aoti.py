"""PyTorch -> machine code (`.aoti.pt2`), compiled ahead of time by Inductor and a C++ compiler.

The file runs where it was made: on that kind of processor and with that version of PyTorch.
"""

import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.deploy import tracing
from zoo.deploy.spec import Settings
from zoo.environment import quiet
from zoo.errors import MissingExtra, NotExportable

PACKAGES = ()
EXTRA = None
INPUT = "input"
COMPILERS = ("g++", "clang++", "c++", "cl")


def convert(model: nn.Module, file: Path, settings: Settings) -> None:
    """Write `model`, in evaluation mode, to `file`.

    Raises:
        BadInput: The model does not run on this input.
        MissingExtra: There is no C++ compiler.
        NotExportable: It cannot be traced or compiled.
    """
    if not any(map(shutil.which, COMPILERS)):
        raise MissingExtra("format 'aoti' needs a C++ compiler: apt install g++, or the like")
    program = tracing.trace(model, settings, "compiled code")
    taken = "uint8" if getattr(model, "takes_pixels", False) else "float32"
    try:
        with quiet(), tracing.no_side_is_one(settings.dynamic_size):
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(file),
                inductor_configs={"aot_inductor.metadata": {"zoo_input": taken}},
            )
    except Exception as error:  # whatever compiling raises
        raise NotExportable(
            f"{tracing.title(model)} cannot be compiled ahead of time: {tracing.reason(error)}"
        ) from error


def versions() -> tuple[str, ...]:
    """Name the packages whose versions shape the artefact."""
    return ("zoo", "torch", "timm")


def describe(file: Path) -> dict[str, Any]:
    """Return what is to be known of the file: the machine that it runs on."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"machine": platform.machine(), "instructions": capability}
