"""The keys of the group `quantize`."""

from dataclasses import dataclass


@dataclass
class QuantizeConfig:
    """How an artefact is brought to int8, and what is found out about that."""

    int8: bool = False  # write the artefact in int8; the other keys are for that
    images: int = 256  # of the training images, without augmentation, to calibrate on
    keep_float: int = 0  # so many layers stay in float: those that cost the most accuracy
    sensitivity: bool = False  # measure what each layer costs, and write the table
