"""Images by name: `create_datamodule(cfg, batch_size=...)` gives loaders to train and evaluate.

The names are imported when first used: `zoo.data.config` must cost nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "ImageData": "zoo.data.datamodule",
    "create_datamodule": "zoo.data.datamodule",
}

__all__ = ["ImageData", "create_datamodule"]

if TYPE_CHECKING:
    from zoo.data.datamodule import ImageData as ImageData
    from zoo.data.datamodule import create_datamodule as create_datamodule
    from zoo.settings import DataConfig as DataConfig


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
