"""Two scores of untrained networks, for any backbone (As-ViT, arXiv 2202.11921, section 3).

They cost a few passes and rank networks of one kind; their values mean little by themselves.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput

_NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, TimmLayerNorm2d)


@dataclass(frozen=True)
class TrainingFreeScores:
    """Means over several initialisations.

    Attributes:
        length_distortion: Expected distortion of the length of a circle; higher is more expressive.
        ntk_condition: Condition number of the tangent kernel; lower is easier to train.
    """

    length_distortion: float
    ntk_condition: float


def length_distortion(
    model: Any, input_size: tuple[int, int, int], *, points: int = 10, seed: int = 0
) -> float:
    """Return how much a network stretches a circle of inputs, with all norms left out.

    The circle lies in a random plane: U (cos t, sin t), where the columns of U are orthonormal. The
    result is the sum over `points` angles t of the norm of the derivative of the feature vector,
    the mean of the last feature map before the final norm, with respect to t.

    Args:
        model: A backbone of this package or of timm with `forward_intermediates`.
        input_size: Shape of an image, C H W.
        points: Number of angles of a full turn.
        seed: Seed of the random plane.
    """
    whole_number(points, "points", 1)
    twin = _without_norms(_checked(model)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(math.prod(input_size), 2, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(plane).Q.T  # 2 CHW, orthonormal
    basis = basis.to(next(twin.parameters()).device)
    angle = torch.arange(points, dtype=torch.float64, device=basis.device) * (2 * math.pi / points)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1) @ basis
    tangent = torch.stack([-angle.sin(), angle.cos()], dim=1) @ basis
    images = circle.view(points, *input_size).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
        features = _features(twin, images)  # points D
        # The product with the Jacobian, by differentiating its transpose with respect to `probe`.
        probe = torch.zeros_like(features, requires_grad=True)
        (back,) = torch.autograd.grad(features, images, probe, create_graph=True)
        (speed,) = torch.autograd.grad(back, probe, tangent.view_as(images))
    return float(speed.norm(dim=1).sum())


def ntk_condition(model: Any, images: Tensor) -> float:
    """Return the condition number of the neural tangent kernel of some images.

    For each image, the gradient of the sum of the feature vector (the mean of the last feature map
    before the final norm) with respect to all parameters that are called "weight". The result is
    the largest eigenvalue of the matrix of their products, divided by the smallest.

    Args:
        model: As for `length_distortion`.
        images: At least two images, B C H W, prepared as in training; the paper takes 16.

    Raises:
        BadInput: There are fewer than two images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise BadInput(f"images of shape {list(images.shape)}: give at least two, B C H W")
    twin = copy.deepcopy(_checked(model)).double().eval()
    weights = [
        parameter
        for name, parameter in twin.named_parameters()
        if name.rpartition(".")[2] == "weight" and parameter.requires_grad
    ]
    rows = []
    for image in images.to(weights[0]).split(1):
        total = _features(twin, image).sum()
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        rows.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    gradients = torch.stack(rows)
    values = torch.linalg.eigvalsh(gradients @ gradients.T)
    return float(values[-1] / values[0].clamp(min=torch.finfo(values.dtype).tiny))


def training_free_scores(
    name: str, images: Tensor, *, repeats: int = 5, seed: int = 0, **arguments: Any
) -> TrainingFreeScores:
    """Return both scores of a model, as means over several initialisations and circles.

    Args:
        name: Name of the model, as for `create_model`.
        images: As for `ntk_condition`; they also give the size of the circle's inputs.
        repeats: Number of initialisations.
        seed: Seed of the first one.
        **arguments: As for `create_model`.
    """
    from zoo.factory import create_model

    whole_number(repeats, "repeats", 1)
    size: Any = tuple(images.shape[1:])
    lengths, conditions = [], []
    for i in range(seed, seed + repeats):
        with _seeded(i):
            model = create_model(name, **arguments)
        lengths.append(length_distortion(model, size, seed=i))
        conditions.append(ntk_condition(model, images))
    return TrainingFreeScores(sum(lengths) / repeats, sum(conditions) / repeats)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _checked(model: Any) -> Any:
    if not callable(getattr(model, "forward_intermediates", None)):
        raise BadInput(
            f"{type(model).__name__} has no forward_intermediates; give a backbone of this package"
            " or of timm, not its features"
        )
    return model


def _features(model: Any, images: Tensor) -> Tensor:
    """Return the mean of the last feature map, before the final norm: B D."""
    maps = model.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)
    return maps[-1].flatten(2).mean(2)


def _without_norms(model: nn.Module) -> nn.Module:
    """Return a copy in which norms are the identity."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, _NORMS):
                setattr(module, name, nn.Identity())
    return twin
