"""The keys of the group `profile`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ProfileConfig:
    """What is measured, how long, and where the records go."""

    runtimes: list[str] = field(default_factory=lambda: ["eager"])  # see zoo.runtimes
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    image_sizes: list[Any] | None = None  # numbers or [height, width]; null: each model's own
    fused: Any = "both"  # true: re-parameterised, false: as built, both: one row each
    threads: int | None = None  # that share a call; null: as many as PyTorch uses
    dtype: str = "float32"  # float32, bfloat16, float16
    channels_last: bool = False  # images and weights as NHWC in memory
    layers: bool = False  # time every layer, too, in the runtime eager
    min_runs: int = 50  # calls that are kept at least
    min_time: float = 1.0  # seconds measured at least, each
    max_time: float = 15.0  # seconds measured at most, each; this bound wins
    out: str | None = None  # a folder or <name>.jsonl, goes on if it exists; null: new, in runs/
