"""The keys of the group `export`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ExportConfig:
    """How an artefact is made, and where."""

    out: str | None = None  # a file or a folder; null: artefacts/<model>/<format>
    image_size: Any = None  # one number or [height, width]; null: the model's own
    batch: Any = "dynamic"  # any batch, or the one size that the artefact will take
    opset: int | None = None  # null: the exporter's own
    fuse: bool = True  # re-parameterise first
    overwrite: bool = False  # replace an artefact that is already there
