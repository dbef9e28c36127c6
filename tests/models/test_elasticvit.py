"""ElasticViT: variants cut out of a supernet, the bias by offset, the norm over a whole image."""

import pytest
import torch
from published import public_state
from support import difference, fresh, images, shaken

import zoo
from zoo.blocks.offset_bias import offset_bias
from zoo.keys import convert_keys, misfits
from zoo.models.elasticvit import Attention

# All variants are cut out of one supernet, whose names and shapes are those of the record of T1.
OWN_LAYOUTS = ("elasticvit_t2", "elasticvit_s*", "elasticvit_m", "elasticvit_l*")
NAME = "elasticvit_t1"


def test_the_bias_depends_on_the_signed_offset():
    side = 4
    table = torch.arange(49.0).reshape(49, 1)
    bias = offset_bias(table, side, 3, 2)
    assert bias.shape == (1, 6, 6)
    for a in range(6):
        for b in range(6):
            dy, dx = a // 2 - b // 2, a % 2 - b % 2
            assert bias[0, a, b] == table[(dy + 3) * 7 + dx + 3, 0]


@pytest.mark.parametrize("size", [(6, 4), (3, 9)])
def test_a_larger_image_stretches_the_table(size):
    """A linear table stays linear: the largest offset keeps its value on a long side."""
    side = 4
    row, column = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    table = torch.stack([(row - 3).flatten(), (column - 3).flatten()], dim=1)
    bias = offset_bias(table, side, *size)
    cells = [(y, x) for y in range(size[0]) for x in range(size[1])]
    for axis in (0, 1):
        ratio = min(1.0, 3 / (size[axis] - 1))
        want = torch.tensor([[(a[axis] - b[axis]) * ratio for b in cells] for a in cells])
        torch.testing.assert_close(bias[axis], want)


def test_a_variant_is_cut_out_of_the_supernet():
    state = public_state(NAME)
    model = zoo.create_model(NAME)
    assert zoo.load_weights(model, state) == []
    block = model.stages[3].blocks[1]
    fc1 = state["feature_exactor.2.layers.1.fc1.weight"]
    assert torch.equal(block.mlp.fc1.weight.flatten(1), fc1[:128, :64])
    kernel = state["feature_exactor.0.layers.1.0.dw_conv.weight"]
    assert torch.equal(model.stages[1].blocks[1].depthwise.conv.weight, kernel[:72, :, 1:4, 1:4])
    qkv = state["feature_exactor.2.layers.0.qkv.weight"]  # 96 queries, 96 keys, 384 values
    rows = torch.cat([qkv[:64], qkv[96:160], qkv[192:320]])[:, :64]
    head = rows[64:128]  # what the public code reads as the second of four heads
    ours = block.attention.qkv.weight.flatten(1)
    for first, own in ((0, ours[16:32]), (16, ours[80:96]), (32, ours[160:192])):
        assert torch.equal(own, head[first : first + len(own)])


@pytest.mark.parametrize("name", zoo.list_models("elasticvit_*"))
def test_every_variant_fits_into_the_supernet(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    state = {key: value.to("meta") for key, value in public_state(NAME).items()}
    assert misfits(convert_keys(state, model), model) == []


def test_other_weights_than_those_of_a_supernet_are_refused():
    state = public_state(NAME, lambda key: "pre_head_1" not in key)
    with pytest.raises(zoo.BadWeights, match=r"missing head\.hidden\.0\."):
        zoo.load_weights(zoo.create_model(NAME), state)


def test_norms_are_over_the_whole_image():
    norm, x = shaken(NAME).stages[3].blocks[1].norm1, images(2, (5, 7), 64)
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, correction=0)
    want = (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(norm(x), want)


@pytest.mark.parametrize("size", [(128, 128), (97, 300)])
def test_a_fused_model_stores_the_bias_of_its_usual_size(size):
    model, x = fresh(NAME, torch.float64), images(2, size, dtype=torch.float64)
    fused = zoo.reparameterize(model)
    attentions = [m for m in fused.modules() if isinstance(m, Attention)]
    assert [m.bias.bias.shape[1] for m in attentions] == [64, 64, 16, 4]
    assert {m.scale for m in attentions} == {1.0}
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
