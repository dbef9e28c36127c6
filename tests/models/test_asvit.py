"""As-ViT: windows that are a share of the feature map, merging, names, sizes."""

import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images, shaken

import zoo
from zoo.blocks.transformer import SelfAttention
from zoo.models.asvit import PatchMerging, SplitAttention
from zoo.reparam import randomize_parameters

NAME = "asvit_small"
SMALL = dict(depths=(1, 1, 1, 1), hidden=16, num_heads=8)


def test_the_first_stage_attends_in_four_windows():
    model = shaken(NAME, **SMALL)
    mixers = [block.mixer for stage in model.stages for block in stage.blocks]
    assert [m.splits for m in mixers] == [2, 1, 1, 1]
    assert [m.num_heads for m in mixers] == [1, 2, 4, 8]


def test_windows_do_not_see_each_other():
    mixer = randomize_parameters(SplitAttention(8, 2, 2).double())
    whole = SelfAttention(8, 2).double()
    whole.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    y = mixer(x)
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 4), slice(4, 8)):
            torch.testing.assert_close(y[:, rows, columns], whole(x[:, rows, columns]))


def test_merging_reads_overlapping_patches_channel_by_channel():
    layer = randomize_parameters(PatchMerging(2, 3).double())
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    padded = F.pad(x, [1, 1, 1, 1])
    patch = padded[0, :, 2:6, 4:8].flatten()  # of the position in the second row, third column
    want = layer.reduction(layer.norm(patch))
    torch.testing.assert_close(layer(x)[0, :, 1, 2], want)
    assert layer(x).shape == (1, 3, 2, 3)


def test_public_names():
    state, model = public_state(NAME), zoo.create_model(NAME)
    assert zoo.load_weights(model, state) == []
    merging = model.stages[1].downsample
    assert torch.equal(merging.reduction.weight, state["layers.0.downsample.reduction.weight"])
    assert torch.equal(model.stem[2].position.table, state["absolute_pos_embed"])


def test_large_is_capped_at_1024_channels():
    with torch.device("meta"):
        model = zoo.create_model("asvit_large", features_only=True)
    assert model.feature_info.channels() == [180, 360, 720, 1024]


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_merging_norms_are_fused(size):
    model = fresh(NAME, torch.float64, **SMALL)
    fused, x = zoo.reparameterize(model), images(2, size, dtype=torch.float64)
    assert fused.stages[1].downsample.norm.weight is None
    assert fused.stages[1].downsample.reduction.bias is not None
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
