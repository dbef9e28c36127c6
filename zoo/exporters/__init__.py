"""Artefacts that run without PyTorch: `pipeline.export` makes, checks and describes one.

The names below are imported when first used: the keys of the configuration live in this package,
too, and reading them must cost nothing.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["Artefact", "Origin", "convert", "export"]

if TYPE_CHECKING:
    from zoo.exporters.manifest import Origin as Origin
    from zoo.exporters.pipeline import Artefact as Artefact
    from zoo.exporters.pipeline import convert as convert
    from zoo.exporters.pipeline import export as export


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo.exporters' has no attribute {name!r}")
    from zoo.exporters import manifest, pipeline

    return getattr(manifest if name == "Origin" else pipeline, name)
