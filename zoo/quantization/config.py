"""The keys of the group `quantize`."""

from dataclasses import dataclass


@dataclass
class QuantizeConfig:
    """How an artefact is quantised, and what is measured."""

    int8: bool = False  # write the artefact in int8; the other keys need this
    images: int = 256  # training images to calibrate on, without augmentation
    keep_float: int = 0  # number of layers to keep in float: those that cost the most accuracy
    sensitivity: bool = False  # measure what each layer costs, and write a table
