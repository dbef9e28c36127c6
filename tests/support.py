"""What tests have in common: shaken models built once, images, comparisons that mean something."""

import functools
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import zoo
from zoo.registry import get_builder
from zoo.reparam import shake

# Families whose facts say that they are in progress have their own tests and records; the checks
# over all families take the others.
IN_PROGRESS = [name for name in zoo.list_models() if "status" in zoo.model_info(name)]
FINISHED = zoo.list_models(exclude=IN_PROGRESS)


def of_images(names: list[str]) -> list[str]:
    """Return the models of flat images; those of volumes have tests of their own."""
    return [name for name in names if len(zoo.model_info(name)["input"]["size"]) == 3]


def takes(name: str, argument: str) -> bool:
    """Say whether a model has an argument."""
    return argument in inspect.signature(get_builder(name)).parameters


# The variants that every check runs over, and the sizes it runs on: the smallest that keep a last
# map of several positions, one of them odd in both axes and at every level.
SMALLEST = of_images(zoo.list_models(smallest_of_family=True, exclude=IN_PROGRESS))
CLASSIFIERS = [name for name in SMALLEST if name in zoo.list_models(task="classification")]
PYRAMIDS = [name for name in SMALLEST if name in zoo.list_models(features=True)]
SIZES = ((64, 64), (97, 130))


@functools.cache
def shaken(name: str, dtype: torch.dtype = torch.float32, **kwargs) -> nn.Module:
    """Return a model in evaluation mode with weights that tell; shared, so not to be changed."""
    return fresh(name, dtype, **kwargs)


def fresh(name: str, dtype: torch.dtype = torch.float32, **kwargs) -> nn.Module:
    """Return the same model for the caller alone."""
    return shake(zoo.create_model(name, **kwargs)).to(dtype).eval()


def images(
    batch: int, size: tuple[int, int] = (64, 64), channels: int = 3, dtype=torch.float32
) -> Tensor:
    """Return random images, always the same ones."""
    generator = torch.Generator().manual_seed(batch + size[0] + size[1])
    return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64).to(dtype)


def tensors(output) -> list[Tensor]:
    """Return the tensors of an output: one, or those of a list, a tuple or a dictionary."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in tensors(value)]


def difference(have, want) -> float:
    """Return the largest difference of two outputs of a batch, relative to their spread over it.

    A comparison of outputs that do not depend on the image, or explode, shows nothing: it fails.
    """
    have, want = tensors(have), tensors(want)
    assert len(have) == len(want) > 0
    worst = 0.0
    for ours, theirs in zip(have, want, strict=True):
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()
        assert theirs.isfinite().all()
        spread = (theirs[0] - theirs[1]).abs().mean().item()
        assert spread > 1e-6 * theirs.abs().max().item(), "the output does not depend on the image"
        worst = max(worst, (ours - theirs).abs().max().item() / spread)
    return worst


def ceil_div(size: Sequence[int], divisor: int) -> tuple[int, ...]:
    """Return sizes over `divisor`, rounded up."""
    return tuple(-(-side // divisor) for side in size)
