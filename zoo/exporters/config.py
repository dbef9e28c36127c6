"""The keys of the group `export`."""

from dataclasses import dataclass


@dataclass
class ExportConfig:
    """How an artefact is made."""

    out: str = "artefacts"
