"""PVT: its reduced attention by hand, tables of other sizes, the class token, public names."""

import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.blocks.positions import LearnedPositionEmbedding, resampled_table
from zoo.blocks.reduced import ReducedAttention
from zoo.reparam import randomize_parameters


def test_public_names_become_ours():
    state = public_state("pvt_tiny")
    model = zoo.create_model("pvt_tiny")
    assert zoo.load_weights(model, state) == []
    own = model.state_dict()
    assert torch.equal(own["stem.positions.position.table"], state["pos_embed1"])
    assert torch.equal(own["stages.3.downsample.positions.class_token.token"], state["cls_token"])
    assert torch.equal(
        own["stages.1.blocks.1.mixer.reduce.weight"], state["block2.1.attn.sr.weight"]
    )
    assert torch.equal(
        own["stages.1.blocks.1.mixer.attention.kv.bias"], state["block2.1.attn.kv.bias"]
    )
    assert torch.equal(own["stages.3.blocks.0.mixer.q.weight"], state["block4.0.attn.q.weight"])


def test_public_names_go_into_a_pyramid():
    model = zoo.create_model("pvt_tiny", features_only=True, out_indices=(0, 1))
    assert zoo.load_weights(model, public_state("pvt_tiny")) == []


@pytest.mark.parametrize("img_size", [128, (96, 160)])
def test_tables_are_resampled_once_as_they_would_be_each_time(img_size):
    native = fresh("pvt_tiny", torch.float64)
    for state in (native.state_dict(), as_public(native)):
        model = zoo.create_model("pvt_tiny", img_size=img_size).double().eval()
        zoo.load_weights(model, state)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        assert model.stem.positions.position.grid == (height // 4, width // 4)
        x = images(2, (height, width), dtype=torch.float64)
        with torch.no_grad():
            assert difference(model(x), native(x)) < 1e-9


def as_public(model):
    """Name our tensors as the public code does, by loading numbered tensors through both."""
    public = public_state("pvt_tiny")
    probe = zoo.create_model("pvt_tiny")
    zoo.load_weights(probe, public)
    ours = {float(tensor.double().sum()): key for key, tensor in probe.state_dict().items()}
    own = model.state_dict()
    return {key: own[ours[float(tensor.double().sum())]] for key, tensor in public.items()}


def test_a_table_is_read_as_an_image_and_keeps_the_class_entry():
    table = torch.randn(1, 1 + 12, 5)
    assert resampled_table(table, (3, 4), 3, 4) is table
    other = resampled_table(table, (3, 4), 6, 8)
    assert torch.equal(other[:, 0], table[:, 0])
    image = table[0, 1:].T.reshape(1, 5, 3, 4)
    want = F.interpolate(image, (6, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(other[0, 1:].T.reshape(1, 5, 6, 8), want)


def test_a_grid_of_as_many_tokens_but_another_shape_is_resampled():
    """The public code compares numbers of tokens alone, and takes the table as it is here."""
    module = LearnedPositionEmbedding(8, (4, 4))
    assert not torch.allclose(module(2, 8), module.table)


def test_reduced_attention_is_the_written_out_formula():
    module = randomize_parameters(ReducedAttention(12, 3, 2).double())
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    smaller = F.conv2d(x.permute(0, 3, 1, 2), module.reduce.weight, module.reduce.bias, stride=2)
    assert smaller.shape == (2, 12, 2, 3), "what is left on the right and below is dropped"
    context = module.norm(smaller.flatten(2).transpose(1, 2))
    attention = module.attention
    q = attention.q(x.reshape(2, 35, 12)).view(2, 35, 3, 4).transpose(1, 2)
    k, v = attention.kv(context).view(2, 6, 2, 3, 4).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / 4**0.5).softmax(-1)
    want = attention.proj((weights @ v).transpose(1, 2).reshape(2, 35, 12)).view(2, 5, 7, 12)
    torch.testing.assert_close(module(x), want)


def test_three_epsilons():
    """1e-5 in the embeddings and the reductions, 1e-6 in the blocks and at the end."""
    for name, module in zoo.create_model("pvt_tiny").named_modules():
        if isinstance(module, nn.LayerNorm):
            inside = ".mixer." in name or ".downsample." in name or name.startswith("stem")
            assert module.eps == (1e-5 if inside else 1e-6), name


def test_the_logits_read_the_class_token_alone():
    model, x = shaken("pvt_tiny"), images(2, (64, 96))
    with torch.no_grad():
        row = model.forward_features(x)
        assert row.shape == (2, 512, 1, 1 + 2 * 3)
        assert torch.equal(model.head.fc(row[:, :, 0, 0]), model(x))
        assert model(x).shape == (2, 1000)
        pooled = zoo.create_model("pvt_tiny", num_classes=0, global_pool="avg").eval()
        zoo.load_weights(pooled, model.state_dict(), strict=False)
        torch.testing.assert_close(pooled(x), row.mean((2, 3)))


def test_sizes_that_are_no_multiples_drop_what_is_left():
    model = shaken("pvt_tiny", features_only=True)
    with torch.no_grad():
        maps = model(images(2, (230, 250)))
    assert [tuple(m.shape[2:]) for m in maps] == [(57, 62), (28, 31), (14, 15), (7, 7)]


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (7, 5)])
def test_images_too_small_for_a_last_token(size):
    with pytest.raises(zoo.BadInput, match="at least 32 x 32"):
        shaken("pvt_tiny")(images(1, size))
    with pytest.raises(zoo.BadInput, match="img_size=.* at least 32 x 32"):
        zoo.create_model("pvt_tiny", img_size=size)


def test_fusing_leaves_one_affine_norm_for_each_embedding():
    model = zoo.reparameterize(shaken("pvt_tiny"))
    kept = [
        n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.weight is not None
    ]
    assert kept == ["stem.norm", *(f"stages.{i}.downsample.norm" for i in (1, 2, 3)), "norm"]
    assert {m.scale for m in model.modules() if hasattr(m, "scale")} == {1.0}
