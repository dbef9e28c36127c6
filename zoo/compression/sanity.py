"""Refuse int8 artefacts whose error exceeds the signal: runtimes compute some graphs wrongly."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from zoo.compression.signal_to_noise import SignalToNoise
from zoo.deploy import tracing
from zoo.errors import NotExportable

COMPARED = 16  # images on which the artefact is compared with the float program
FEWEST = 8  # fewer images cannot show how much their outputs differ


def comparison_batches(batches: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return the first batches, enough to compare on."""
    return batches[: 1 + COMPARED // len(batches[0])]


def refuse_noise(
    model: nn.Module, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], runtime: str
) -> None:
    """Raise `NotExportable` if the int8 error exceeds the differences between images.

    Args:
        model: The model, for the message.
        expected: Outputs of the float program, one array per batch.
        actual: Outputs of the artefact.
        runtime: Name of the runtime, for the message.
    """
    noise = SignalToNoise()
    for want, have in zip(expected, actual, strict=True):
        noise.add(want, have)
    if noise.images >= FEWEST and noise.snr_db < 0:
        raise NotExportable(
            f"{tracing.model_name(model)} in int8: the error in {runtime} exceeds the signal "
            f"(SNR {noise.snr_db:.1f} dB); keep more layers in float (keep_float), or calibrate "
            "on more images"
        )
