"""Whether what runs in int8 has to do with the model: runtimes get some graphs wrong, silently."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from zoo.compression.signal_to_noise import Noise
from zoo.deploy import tracing
from zoo.errors import NotExportable

WATCHED = 16  # images on which the file is compared with the float program
FEWEST = 8  # of fewer, nothing can be said of how much images differ


def watched(batches: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return the batches to compare on."""
    return batches[: 1 + WATCHED // len(batches[0])]


def check(
    model: nn.Module, wanted: Sequence[np.ndarray], found: Sequence[np.ndarray], runtime: str
) -> None:
    """Raise `NotExportable` where outputs differ from those in float by more than images do.

    Args:
        model: For the message.
        wanted: The float program's outputs, one array a batch.
        found: The file's.
        runtime: What ran the file, for the message.
    """
    noise = Noise()
    for want, have in zip(wanted, found, strict=True):
        noise.add(want, have)
    if noise.images >= FEWEST and noise.snr_db < 0:
        raise NotExportable(
            f"{tracing.title(model)} in int8: what {runtime} computes differs from the float "
            f"program by more than images do ({noise.snr_db:.1f} dB); keep more layers in float"
        )
