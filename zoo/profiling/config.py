"""The keys of the group `profile`."""

from dataclasses import dataclass, field


@dataclass
class ProfileConfig:
    """What is measured, and where the records go."""

    runtimes: list[str] = field(default_factory=lambda: ["eager"])
    batch_sizes: list[int] = field(default_factory=lambda: [1])
