"""The scores of untrained networks, against closed forms for linear and quadratic networks."""

import math

import pytest
import torch
from torch import nn

import zoo
from zoo.profiling.training_free import length_distortion, ntk_condition, training_free_scores

NAME = "cct_2_3x2_32"


class Pixelwise(nn.Module):
    """A norm and a pointwise layer, raised to a power: features whose derivatives are known."""

    def __init__(self, power=1):
        super().__init__()
        self.norm = nn.GroupNorm(1, 3)
        self.layer = nn.Conv2d(3, 4, 1)
        self.power = power

    def forward_intermediates(self, x, indices, norm, intermediates_only):
        assert (indices, norm, intermediates_only) == (1, False, True)
        return [self.layer(self.norm(x)) ** self.power]


def circle(size, points):
    plane = torch.randn(
        math.prod(size), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    basis = torch.linalg.qr(plane).Q
    angles = [2 * math.pi * i / points for i in range(points)]
    return [
        (
            basis @ torch.tensor([math.cos(t), math.sin(t)], dtype=torch.float64),
            basis @ torch.tensor([-math.sin(t), math.cos(t)], dtype=torch.float64),
        )
        for t in angles
    ]


@pytest.mark.parametrize("power", [1, 2])
def test_length_is_the_sum_of_speeds_on_a_circle_without_norms(power):
    torch.manual_seed(0)
    model, size = Pixelwise(power).eval(), (3, 4, 2)
    weight, bias = model.layer.weight[:, :, 0, 0].double(), model.layer.bias.double()
    want = 0.0
    for x, tangent in circle(size, 5):
        assert x.norm().item() == pytest.approx(1)
        assert (x @ tangent).item() == pytest.approx(0, abs=1e-12)
        value = weight @ x.view(3, -1) + bias[:, None]
        speed = (weight @ tangent.view(3, -1)) * (2 * value if power == 2 else 1)
        want += speed.mean(1).norm().item()
    assert length_distortion(model, size, points=5) == pytest.approx(want)
    assert isinstance(model.norm, nn.GroupNorm), "the model itself keeps its norms"


def test_the_kernel_is_that_of_all_weights():
    """For a linear layer, the gradient is the mean of its input, once for each output."""
    torch.manual_seed(0)
    model, images = Pixelwise().eval(), torch.randn(2, 3, 4, 4)
    normed = model.norm(images).double()
    layer = normed.mean((2, 3)).repeat(1, 4)  # with respect to the weight of the layer
    plain = normed.mean((2, 3))  # the affine part of the norm is 1 and 0
    norm = plain * model.layer.weight.double().sum((0, 2, 3))
    rows = torch.cat([layer, norm], dim=1).detach()
    values = torch.linalg.eigvalsh(rows @ rows.T)
    assert ntk_condition(model, images) == pytest.approx((values[-1] / values[0]).item(), rel=1e-3)


def test_scores_of_a_model_are_means_over_initialisations():
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    both = training_free_scores(NAME, images, repeats=2)
    single = [training_free_scores(NAME, images, repeats=1, seed=seed) for seed in (0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    for score in ("length_distortion", "ntk_condition"):
        values = [getattr(scores, score) for scores in single]
        assert values[0] != values[1]
        assert getattr(both, score) == pytest.approx(sum(values) / 2)
    assert both.length_distortion > 0
    assert both.ntk_condition > 1


def test_what_cannot_be_scored_is_refused():
    model = zoo.create_model(NAME)
    with pytest.raises(zoo.BadInput, match="at least two, B C H W"):
        ntk_condition(model, torch.zeros(1, 3, 32, 32))
    with pytest.raises(zoo.BadInput, match="^points=0"):
        length_distortion(model, (3, 32, 32), points=0)
    with pytest.raises(zoo.BadInput, match="Conv2d has no forward_intermediates"):
        length_distortion(nn.Conv2d(3, 4, 1), (3, 32, 32))
