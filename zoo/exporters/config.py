"""The keys of the group `export`."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ExportConfig:
    """How an artefact is made, and where."""

    out: str | None = None  # a file or a folder; null: artefacts/<model>/<format>
    image_size: Any = None  # one number or [height, width]; null: the model's own
    batch: Any = None  # dynamic, or the one size of a batch; null: dynamic where the format can
    dynamic_size: bool = False  # any image size, compared at others than image_size
    opset: int | None = None  # of onnx and openvino; null: the exporter's own
    half: bool = False  # weights in float16
    preprocess: bool = False  # take pixels as bytes and normalise them in the artefact
    postprocess: bool = False  # give probabilities of classes, or the class of every pixel
    fuse: bool = True  # re-parameterise first
    overwrite: bool = False  # replace an artefact that is already there
