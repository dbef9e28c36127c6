"""ExtremeC3Net: the image inside the feature maps, the head, sizes."""

import pytest
import torch
from published import public_state
from support import difference, fresh, images, shaken
from torch.nn import functional as F

import zoo
from zoo.models.extremec3net import DilatedBranch

NAME = "extremec3net_portrait"


def test_feature_maps_have_the_image_as_their_last_channels():
    model, x = shaken(NAME), images(2, (16, 24))
    with torch.no_grad():
        first = model.forward_intermediates(x, [0], intermediates_only=True)[0]
    torch.testing.assert_close(first[:, -3:], F.avg_pool2d(x, 4))


def test_a_branch_sees_every_position_up_to_its_reach():
    branch = DilatedBranch(1, 1, 4).double()
    for conv in (branch.column, branch.row, branch.dilated, branch.pointwise):
        torch.nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 25, 25, dtype=torch.float64)
    x[0, 0, 12, 12] = 1
    seen = branch.eval()(x)[0, 0] != 0
    assert seen[12].tolist() == [abs(i - 12) <= 7 for i in range(25)]


def test_fusing_mixes_channels_before_the_enlargement():
    model, x = fresh(NAME, torch.float64), images(2, (16, 24), dtype=torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    size = (1, 3, 64, 64)
    assert zoo.count(fused, size).macs < zoo.count(model, size).macs


def test_public_weights_without_counters():
    state = public_state(NAME, lambda key: "num_batches_tracked" not in key)
    assert zoo.load_weights(zoo.create_model(NAME), state) == []


def test_sides_must_be_multiples_of_4():
    with pytest.raises(zoo.BadInput, match=r"multiple of 4, such as \[20, 24\]"):
        zoo.create_model(NAME)(images(1, (18, 24)))
