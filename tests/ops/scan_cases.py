"""Inputs for tests of the selective scan, and its definition in float64."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@dataclass(frozen=True)
class Case:
    """Sizes of a scan, and which optional inputs it has."""

    batch: int
    channels: int
    length: int
    states: int
    groups: int = 1
    D: bool = True
    z: bool = False
    bias: bool = True
    softplus: bool = True

    def __str__(self) -> str:
        optional = {"D": self.D, "z": self.z, "b": self.bias, "s": self.softplus}
        present = "".join(letter for letter, given in optional.items() if given)
        sizes = (self.batch, self.channels, self.length, self.states, self.groups)
        return "x".join(map(str, sizes)) + (f"-{present}" if present else "")

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor | None]:
        """Draw random inputs, with decay rates from 0.1 to about 8."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        sequence = (self.batch, self.channels, self.length)
        weights = (self.batch, self.groups, self.states, self.length)
        delta = draw(*sequence)
        drawn = {
            "u": draw(*sequence),
            "delta": delta if self.softplus else delta.abs() * 0.5,
            "A": -(0.1 + 2 * draw(self.channels, self.states).abs()),
            "B": draw(*weights),
            "C": draw(*weights),
            "D": draw(self.channels) if self.D else None,
            "z": draw(*sequence) if self.z else None,
            "delta_bias": 0.5 * draw(self.channels).abs() if self.bias else None,
        }
        return {k: v if v is None else v.to(dtype) for k, v in drawn.items()}


# Small sizes, which cover each optional input present and absent.
SMALL = [
    Case(2, 6, 1, 1),
    Case(1, 4, 1, 16, groups=4, z=True),
    Case(2, 20, 37, 8, groups=2, D=False),
    Case(1, 7, 65, 16, z=True, bias=False),
    Case(3, 4, 30, 1, groups=4, D=False, z=True, bias=False),
    Case(1, 33, 129, 64, groups=1, z=True),
    Case(2, 40, 64, 3, groups=2, softplus=False, bias=False),
    Case(1, 36, 63, 5, groups=2, softplus=False, z=True),
]
LONG = [Case(1, 6, 4096, 4, groups=2), Case(1, 2, 4096, 16, z=True)]


def definition(inputs: dict[str, Tensor | None], softplus: bool = True) -> np.ndarray:
    """Return y, B D L in float64, computed number by number from the definition."""
    u, step, A, B, C, D, z, bias = (
        None if inputs[k] is None else inputs[k].detach().double().numpy() for k in NAMES
    )
    if bias is not None:
        step = step + bias[None, :, None]
    if softplus:
        step = np.logaddexp(step, 0)
    batch, channels, length = u.shape
    width = channels // B.shape[1]
    y = np.zeros_like(u)
    for b, d in itertools.product(range(batch), range(channels)):
        h = np.zeros(A.shape[1])
        for t in range(length):
            h = (
                np.exp(step[b, d, t] * A[d]) * h
                + step[b, d, t] * B[b, d // width, :, t] * u[b, d, t]
            )
            y[b, d, t] = C[b, d // width, :, t] @ h
    if D is not None:
        y = y + D[None, :, None] * u
    if z is not None:
        y = y * z / (1 + np.exp(-z))
    return y


def relative_error(actual: Tensor, expected: np.ndarray | Tensor) -> float:
    """Return the largest difference divided by the largest expected value."""
    actual = actual.detach().double().numpy()
    expected = expected.detach().double().numpy() if isinstance(expected, Tensor) else expected
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-300))
