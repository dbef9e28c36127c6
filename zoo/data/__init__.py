"""Data sets by name: `create_datamodule(cfg, batch_size=...)` returns loaders for any of them."""

from zoo.data.config import DataConfig
from zoo.data.create import create_datamodule
from zoo.data.datamodule import ImageData

__all__ = ["DataConfig", "ImageData", "create_datamodule"]
