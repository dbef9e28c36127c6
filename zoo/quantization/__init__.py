"""Post-training int8 quantisation: calibrated on images, with the loss of accuracy measured.

Weights are quantised per channel and activations per tensor, after fusing. `command` implements
`export.py quantize.int8=true`, `quantize` is the same in Python; each format has a module that
writes the artefact. `quantize` is imported on first use, because the configuration keys are also
in this package and must load fast.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["quantize"]

if TYPE_CHECKING:
    from zoo.quantization.pipeline import quantize as quantize


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo.quantization' has no attribute {name!r}")
    from zoo.quantization import pipeline

    return pipeline.quantize
