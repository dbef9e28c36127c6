"""The keys of the group `data`."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """Which images a run sees, and how they are prepared."""

    name: str = "digits"
