"""PVT v2: equal to timm's, public names, sizes."""

import pytest
import timm
import torch
from support import difference, images

import zoo
from zoo.reparam import randomize_parameters

NAME = "pvt_v2_b0"


def public(state):
    """Return timm's weights under the names of whai362/PVT."""
    renamed = {}
    for key, value in state.items():
        parts = key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.").split(".")
        if parts[0] == "patch_embed":
            parts[0] = "patch_embed1"
        elif parts[0] == "stages":
            stage = int(parts[1]) + 1
            kind = {"blocks": "block", "downsample": "patch_embed", "norm": "norm"}[parts[2]]
            parts = [f"{kind}{stage}", *parts[3:]]
        renamed[".".join(parts)] = value
    return renamed


@pytest.mark.parametrize("size", [(64, 96), (70, 61)])
def test_outputs_are_those_of_timm(size):
    theirs = randomize_parameters(timm.create_model(NAME)).double().eval()
    x = images(2, size, dtype=torch.float64)
    with torch.no_grad():
        for state in (theirs.state_dict(), public(theirs.state_dict())):
            ours = zoo.create_model(NAME).double().eval()
            assert zoo.load_weights(ours, state) == []
            assert difference(ours(x), theirs(x)) < 1e-9


def test_too_small_images_are_refused():
    model = zoo.create_model(NAME).eval()
    with pytest.raises(zoo.BadInput, match="at least 29 x 29"):
        model(images(1, (28, 64)))
    assert model(images(1, (29, 64))).shape == (1, 1000)
