"""Records of public implementations: the weights they were made with, and how to compare outputs.

The rule is that of tests/reference/make_record.py.
"""

import math
import zlib

import numpy as np
import torch

# Relative to the spread of what is compared; records hold seven digits of single values.
TOLERANCE = 2e-6
DIGITS = 1e-7


def draw(name: str, shape) -> np.ndarray:
    """Normal values that depend on the name alone (the stream of RandomState is frozen)."""
    seed = zlib.crc32(name.encode())
    return np.asarray(np.random.RandomState(seed).randn(*shape))  # noqa: NPY002


def weight(name: str, shape) -> np.ndarray:
    """What the rule of the records makes of a float tensor of that name and shape."""
    values = draw(name, shape)
    if name.endswith("running_var"):
        return 0.5 + abs(values) / 2
    if len(shape) <= 1 or values.size == 1:
        return 0.1 * values + name.endswith("weight")
    return values * math.sqrt(shape[0] / values.size)


def public_state(record) -> dict[str, torch.Tensor]:
    """The weights by their public names; counters are 0, index tables are the model's own."""
    state = {}
    for name, shape, dtype in record["state"]:
        if "float" in dtype:
            factor = record.get("fill_factor", {}).get(name, 1.0)
            state[name] = torch.from_numpy(weight(name, shape) * factor)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
    return state


def against_noise(seed: int, values: torch.Tensor) -> torch.Tensor:
    """The product with normal noise, over the root of the number of values."""
    noise = np.random.RandomState(seed).randn(values.numel())  # noqa: NPY002
    return (values.flatten() * torch.from_numpy(noise)).sum() / math.sqrt(values.numel())


def compare_output(have: torch.Tensor, want: dict) -> list[str]:
    """Say how an output differs from its digest."""
    if list(have.shape) != want["shape"]:
        return [f"shape {list(have.shape)}, expected {want['shape']}"]
    have = have.detach()
    found = {
        "mean": have.mean(),
        "std": have.std(correction=0),
        "probe": against_noise(0, have),
    }
    wrong = [
        f"{what} {value.item():.9g}, expected {want[what]:.9g}"
        for what, value in found.items()
        if not abs(value.item() - want[what]) <= TOLERANCE * want["std"]
    ]
    first = (have.flatten()[:16] - torch.tensor(want["first"], dtype=have.dtype)).abs().max().item()
    if not first <= TOLERANCE * want["std"] + DIGITS:
        wrong.append(f"first values off by {first:.1e}")
    return wrong
