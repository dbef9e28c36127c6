"""LSNet: shared kernels, two ways with the attention bias, both heads, public names."""

import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.blocks.attention import AttentionBias, attention_bias
from zoo.models.lsnet import Attention, KernelPredictor, LSConv, MatrixBias, RepDepthwise
from zoo.ops import aggregate
from zoo.reparam import randomize_parameters

# Published names that do not follow from the records: a first stage with blocks.
OWN_LAYOUTS = ("lsnet_s*", "lsnet_b*")

# Published sizes of the fused networks, in millions, and before: without and with two classifiers.
PARAMS = {"t": (11.4, 11409832, 11795600), "s": (16.1, 16146304, 16596200)}
PARAMS["b"] = (23.2, 23313608, 23827632)


@pytest.mark.parametrize("distilled", [False, True])
def test_public_names_become_ours(distilled):
    record = "lsnet_t_distill" if distilled else "lsnet_t"
    state, model = public_state(record), zoo.create_model(record)
    assert "blocks4.3.mixer.m.attention_bias_idxs" in state
    assert zoo.load_weights(model, state) == []
    own = model.state_dict()
    pairs = {
        "stem.1.conv.weight": "patch_embed.2.c.weight",
        "stages.1.downsample.1.norm.weight": "blocks2.1.bn.weight",
        "stages.1.blocks.0.mixer.small.conv.weight": "blocks2.2.mixer.conv1.c.weight",
        "stages.2.blocks.3.mixer.predict.kernels.bias": "blocks3.5.mixer.lkp.cv4.bias",
        "stages.2.blocks.3.mixer.predict.norm.weight": "blocks3.5.mixer.lkp.norm.weight",
        "stages.2.blocks.3.mixer.norm.running_var": "blocks3.5.mixer.bn.running_var",
        "stages.3.blocks.1.mixer.inner.bias.table": "blocks4.3.mixer.m.attention_biases",
        "stages.3.blocks.1.mixer.inner.proj.conv.weight": "blocks4.3.mixer.m.proj.1.c.weight",
        "stages.3.blocks.8.se.expand.bias": "blocks4.10.se.fc2.bias",
        "head.fc.linear.weight": "head.l.weight",
    }
    if distilled:
        pairs["head.fc_dist.norm.bias"] = "head_dist.bn.bias"
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours], state[theirs]), ours


@pytest.mark.parametrize("size", PARAMS)
def test_parameters_before_and_after_fusing(size):
    published, plain, distilled = PARAMS[size]
    for name, count in ((f"lsnet_{size}", plain), (f"lsnet_{size}_distill", distilled)):
        model = zoo.create_model(name).eval()
        assert sum(p.numel() for p in model.parameters()) == count
        fused = sum(p.numel() for p in zoo.reparameterize(model).parameters())
        assert fused / 1e6 == pytest.approx(published, abs=0.051)


def test_channels_share_kernels_in_strides():
    module = randomize_parameters(LSConv(16).double()).eval()
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    kernels = module.predict(x)
    assert kernels.shape == (2, 2, 9, 5, 6)
    patches = F.unfold(x, 3, padding=1).view(2, 16, 9, 5, 6)
    want = torch.stack([(patches[:, c] * kernels[:, c % 2]).sum(1) for c in range(16)], dim=1)
    torch.testing.assert_close(aggregate(x, kernels), want)
    torch.testing.assert_close(module(x), x + module.norm(want))


def test_nine_taps_of_a_kernel_are_normalised_together():
    module = KernelPredictor(16).double().eval()
    kernels = module(torch.randn(3, 16, 8, 9, dtype=torch.float64))
    assert kernels.mean((2, 3, 4)).abs().max() < 1e-6
    torch.testing.assert_close(
        kernels.var((2, 3, 4), unbiased=False),
        torch.ones(3, 2, dtype=torch.float64),
        rtol=1e-2,
        atol=0,
    )


def test_depthwise_branches_become_one_filter():
    module = randomize_parameters(nn.Sequential(RepDepthwise(6)).double()).eval()
    fused = zoo.reparameterize(module)
    assert isinstance(fused[0], nn.Conv2d)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), module(x))


def test_attention_is_the_written_out_formula():
    module = randomize_parameters(
        Attention(32, AttentionBias(4, (3, 4), align_corners=False)).double()
    ).eval()
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    qkv = module.qkv(x)
    q, k, v = module.local(qkv[:, :64]), qkv[:, 64:128], qkv[:, 128:]
    bias = attention_bias(module.bias.table, (3, 4), 3, 4)
    heads = []
    for h in range(4):
        rows = slice(16 * h, 16 * h + 16)
        scores = q[:, rows].flatten(2).transpose(1, 2) @ k[:, rows].flatten(2) / 4 + bias[h]
        heads.append(v[:, 8 * h : 8 * h + 8].flatten(2) @ scores.softmax(-1).transpose(1, 2))
    want = module.proj(F.relu(torch.cat(heads, dim=1).view(2, 32, 3, 4)))
    torch.testing.assert_close(module(x), want)


def test_tables_are_resampled_with_corners_of_pixels_on_each_other():
    table = torch.randn(4, 16)
    want = F.interpolate(table.view(1, 4, 4, 4), (14, 14), mode="bicubic", align_corners=False)
    assert torch.equal(
        MatrixBias(4, (14, 14), align_corners=False).fit_table(table), want.view(4, 196)
    )
    state = public_state("lsnet_t")
    larger = zoo.create_model("lsnet_t", img_size=448)
    assert zoo.load_weights(larger, state) == []
    key = "stages.3.blocks.1.mixer.inner.bias.table"
    public = state["blocks4.3.mixer.m.attention_biases"]
    want = F.interpolate(public.view(1, 4, 4, 4), (7, 7), mode="bicubic", align_corners=False)
    assert torch.equal(larger.state_dict()[key], want.view(4, 49))


def test_a_model_for_another_size_computes_what_the_native_one_does():
    native = fresh("lsnet_t", torch.float64)
    model = zoo.create_model("lsnet_t", img_size=(320, 448)).double().eval()
    zoo.load_weights(model, native.state_dict())
    x = images(2, (320, 448), dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(x), native(x)) < 1e-9


def test_pyramids_have_the_dense_form():
    pyramid = shaken("lsnet_t", features_only=True)
    kinds = {type(m) for m in pyramid.modules() if isinstance(m, AttentionBias | MatrixBias)}
    assert kinds == {MatrixBias}
    assert pyramid.stages[3].blocks[1].mixer.inner.bias.table.shape == (4, 196)
    assert pyramid.feature_info.reduction() == [8, 16, 32, 64]
    # A checkpoint of the classifier goes in: its 4x4 tables become 14x14.
    assert (
        zoo.load_weights(zoo.create_model("lsnet_t", features_only=True), public_state("lsnet_t"))
        == []
    )
    assert (
        zoo.load_weights(zoo.create_model("lsnet_t", dense=True), fresh("lsnet_t").state_dict())
        == []
    )


def test_the_dense_form_resamples_the_matrix():
    module = MatrixBias(2, (3, 3))
    nn.init.normal_(module.table)
    matrix = attention_bias(module.table, (3, 3), 3, 3)
    assert torch.equal(module(3, 3), matrix)
    assert torch.equal(module(1, 9), matrix), "of as many positions: taken as it is"
    want = F.interpolate(matrix[None], (20, 20), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(module(4, 5), want)
    with torch.no_grad():
        assert torch.equal(module.fused()(4, 5), module(4, 5))


def test_the_bias_follows_the_table_after_an_evaluation():
    module, x = Attention(32, AttentionBias(4, (3, 4))).eval(), torch.randn(2, 32, 3, 4)
    randomize_parameters(module)
    with torch.no_grad():
        before = module(x)
        module.bias.table.mul_(-30)
        assert difference(module(x), before) > 1e-3, "a cached bias would still be in use"


@pytest.mark.usefixtures("quiet_script")
def test_the_dense_form_is_a_program_and_is_fused():
    model, x = (
        shaken("lsnet_t", torch.float64, features_only=True),
        images(2, (96, 130), dtype=torch.float64),
    )
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        want = model(x)
        assert difference(fused(x), want) < 1e-9
        assert difference(torch.jit.script(fused)(x), want) < 1e-9


def test_branches_start_silent():
    model = zoo.create_model("lsnet_t").eval()
    block = model.stages[3].blocks[1]
    x = torch.randn(1, 384, 2, 3)
    with torch.no_grad():
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("wrong", [0, (64,), "224"])
def test_sizes_that_cannot_work(wrong):
    with pytest.raises(zoo.BadInput, match="img_size="):
        zoo.create_model("lsnet_t", img_size=wrong)
