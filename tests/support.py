"""What tests have in common: shaken models built once, images, comparisons that mean something."""

import contextlib
import copy
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.blocks.hashing import HashedAttention
from zoo.registry import get_spec
from zoo.reparam import randomize_parameters

# Families whose facts say that they are in progress have their own tests and records; the checks
# over all families take the others.
IN_PROGRESS = [name for name in zoo.list_models() if "status" in zoo.model_info(name)]
FINISHED = zoo.list_models(exclude=IN_PROGRESS)


def takes(name: str, argument: str) -> bool:
    """Say whether a model has an argument; `drop_path_rate` needs branches to drop, too."""
    if argument == "drop_path_rate" and not capability(name, "drop_path", True):
        return False
    return argument in inspect.signature(get_spec(name).builder()).parameters


def capability(name: str, what: str, default):
    """Return what the facts of a model state of a capability."""
    return zoo.model_info(name)["capabilities"].get(what, default)


def map_size(name: str, size: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the size of the map of that stride: divided with rounding up, unless facts differ."""
    patch = capability(name, "patch", 1)
    up = min(stride, capability(name, "floors", 2 * stride) // 2)
    return tuple(ceil // (stride // up) for ceil in ceil_div([s - s % patch for s in size], up))


def axes(name: str) -> int:
    """Return the number of spatial axes of a model's input: 2 for images, 3 for volumes."""
    return len(zoo.model_info(name)["input"]["size"]) - 1


def smallest(names: list[str]) -> list[str]:
    """Return the variant with the fewest parameters of each family, task and number of axes."""
    found: dict[tuple, str] = {}
    for name in sorted(names, key=lambda name: zoo.model_info(name)["params"]):
        facts = zoo.model_info(name)
        found.setdefault((facts["family"], facts["task"], axes(name)), name)
    return sorted(found.values())


# The variants that every check runs over, and the sizes it runs on: the smallest that keep a last
# map of several positions, one of them odd in both axes and at every level.
SMALLEST = smallest(FINISHED)
CLASSIFIERS = [name for name in SMALLEST if name in zoo.list_models(task="classification")]
PYRAMIDS = [name for name in SMALLEST if name in zoo.list_models(features=True)]
SIZES = ((64, 64), (97, 130))

# One family of each kind of features: plain, volumes, tokens of one size and of several, features
# computed otherwise than the classifier's, a stage that reads an earlier one. All other code of
# features is the same; tests/contract/test_contract_programs.py checks that no kind is missing.
KINDS = ("efficientformer_l1", "lightm_unet_3d_8", "cvt_2_4_32", "kat_tiny_patch16_224")
KINDS += ("pvt_tiny", "skipblocknet_m", "lsnet_t")

# A model whose maps are so wide that they take most of the time, with narrower ones.
NARROW = {"wavemix_seg_192_16_l3_cityscapes": {"dim": 32, "widths": (32, 24)}}

# Families without an argument of their depth: blocks behind the first of a stage repeat its form.
CUT = ("mobilenetv2", "once_for_all", "phnn", "skipblocknet", "spnasnet", "sret")


def sizes(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return two sizes that a model takes, the second with sides that differ.

    They are `SIZES` for a model that takes any; for one whose sides must be multiples, an even
    multiple for all sides, and odd ones.
    """
    multiple = zoo.model_info(name)["input"].get("multiple")
    if multiple is None:
        assert axes(name) == 2
        return SIZES
    even = max(1, 8 // multiple) * 2
    odd = (even + 1, even + 3) if axes(name) == 2 else (even + 1, even - 1, even + 3)
    return (even * multiple,) * axes(name), tuple(side * multiple for side in odd)


def quick(name: str, blocks: int = 2) -> dict[str, Any]:
    """Return arguments that leave blocks out where a program of all of them takes long to make.

    Two blocks of a stage stay by default: the first of them often has another form. With one,
    two levels of a U-Net stay, too. The argument `blocks`, for a family without an argument of its
    depth, is one of `shaken`, `fresh` and `build` only.
    """
    if zoo.model_info(name)["family"] in CUT:
        return {"blocks": blocks}
    levels = 2 if blocks == 1 else 4
    fewer: dict[str, Any] = {"blocks_down": (1,) * levels, "blocks_up": (1,) * (levels - 1)}
    arguments = inspect.signature(get_spec(name).builder()).parameters
    depth, depths = (
        arguments[key].default if key in arguments else None for key in ("depth", "depths")
    )
    if isinstance(depth, int):
        fewer["depth"] = min(depth, 2 * blocks)
    if depths and all(isinstance(depth, int) for depth in depths):
        fewer["depths"] = tuple(min(depth, blocks) for depth in depths)
    fewer = {argument: value for argument, value in fewer.items() if takes(name, argument)}
    return fewer | NARROW.get(name, {})


def build(name: str, *, blocks: int | None = None, **kwargs) -> nn.Module:
    """Create a model; with `blocks`, only so many of the blocks of each stage stay in it."""
    with without_initial_values():
        return shortened(zoo.create_model(name, **kwargs), blocks)


def shortened(model: nn.Module, blocks: int | None) -> nn.Module:
    """Leave only so many of the blocks of each stage in a model; all with None."""
    if blocks is not None:
        for stage in model.stages:
            stage.blocks = stage.blocks[:blocks]
    return model


def on_meta(name: str, **kwargs) -> nn.Module:
    """Create a model without storage, to look at its parts, names and shapes."""
    with torch.device("meta"):
        return build(name, **kwargs)


@contextlib.contextmanager
def without_initial_values():
    """Leave out drawing the initial values of parameters, which `randomize_parameters` replaces."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        for name in ("uniform_", "normal_"):
            patch.setattr(Tensor, name, lambda tensor, *_, **__: tensor)
        yield


@functools.lru_cache(maxsize=3 * len(SMALLEST))  # whole, with fewer blocks, and the features
def shaken(name: str, dtype: torch.dtype = torch.float32, **kwargs) -> nn.Module:
    """Return a model in evaluation mode with random weights of order one.

    Every test of a process that asks for these arguments gets the same model: do not change it.
    """
    if dtype != torch.float32:
        return fresh(name, dtype, **kwargs)
    return randomize_parameters(build(name, **kwargs)).eval()


def fresh(name: str, dtype: torch.dtype = torch.float32, **kwargs) -> nn.Module:
    """Return a model equal to the `shaken` one that the caller may change."""
    if not kwargs or kwargs == quick(name):
        return copy.deepcopy(shaken(name, **kwargs)).to(dtype)
    return shaken.__wrapped__(name, **kwargs).to(dtype)


def with_hashes(model: nn.Module) -> nn.Module:
    """Give a new model some hash functions, without which it cannot be trained; return it."""
    for module in model.modules():
        if isinstance(module, HashedAttention):
            for table in (module.anchors, module.means, module.hash):
                nn.init.normal_(table)
    return model


def images(
    batch: int, size: Sequence[int] = (64, 64), channels: int = 3, dtype=torch.float32
) -> Tensor:
    """Return random images, or volumes if there are three sides; always the same ones.

    Each has a colour of its own: to a deep network plain noise looks the same in every image.
    """
    generator = torch.Generator().manual_seed(batch + sum(size))
    noise = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    colour = torch.randn(batch, channels, *[1] * len(size), generator=generator).double()
    return (noise + 2 * colour).to(dtype)


def inputs(
    name: str, batch: int = 2, which: int = 0, *, channels: int | None = None, dtype=torch.float32
) -> Tensor:
    """Return random input of a model, in the first or the second of its `sizes`."""
    channels = channels or zoo.model_info(name)["input"]["size"][0]
    return images(batch, sizes(name)[which], channels, dtype)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes; fixed tables and features are none of them."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


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


def mean_difference(have: Tensor, want: Tensor) -> float:
    """Return the mean difference of an output of a batch, relative to its spread over it."""
    assert have.shape == want.shape
    assert have.isfinite().all()
    spread = (want[0] - want[1]).abs().mean().item()
    assert spread > 1e-6 * want.abs().max().item(), "the output does not depend on the image"
    return (have - want).abs().mean().item() / spread


def ceil_div(size: Sequence[int], divisor: int) -> tuple[int, ...]:
    """Return sizes over `divisor`, rounded up."""
    return tuple(-(-side // divisor) for side in size)
