"""The keys of the group `train`."""

from dataclasses import dataclass


@dataclass
class TrainConfig:
    """How a model is trained."""

    epochs: int = 8
