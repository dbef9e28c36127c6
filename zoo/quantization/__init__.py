"""Artefacts in int8: calibrated on real images, and judged by what they cost in accuracy.

Weights are quantised per channel and values per tensor, after fusing. `command` is what
`export.py quantize.int8=true` does, `quantize` does it in Python; one module a format writes the
artefact. The name below is imported when first used: the keys of the configuration live in this
package, too, and reading them must cost nothing.
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
