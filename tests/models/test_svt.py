"""SVT: complex layers by hand, weights for other sizes, the head for tokens, public names."""

import pytest
import torch
from published import public_state
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.models.svt import (
    HalfScattering,
    Scattering,
    mix_channels,
    mix_columns,
    resized,
    resized_matrices,
)
from zoo.reparam import randomize_parameters


def noise(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ["svt_s", "svt_s_ct"])
def test_public_names_become_ours(name):
    state, model = public_state(name), zoo.create_model(name)
    filters = {
        "block1.0.attn.xfm.h0o": torch.zeros(1, 13, 1),
        "block1.0.attn.ifm.g0b": torch.ones(1),
    }
    assert zoo.load_weights(model, state | filters) == []
    own = model.state_dict()
    inner = "scattering." if name == "svt_s_ct" else ""
    pairs = {
        "stem.1.conv.weight": "patch_embed1.conv.3.weight",
        "stem.3.project.bias": "patch_embed1.proj.bias",
        f"stages.0.blocks.2.mixer.{inner}low": "block1.2.attn.complex_weight_ll",
        f"stages.0.blocks.0.mixer.{inner}channels.bias2": "block1.0.attn.complex_weight_lh_b2",
        "stages.0.blocks.3.norm.weight": "norm1.weight",
        "stages.2.blocks.5.mlp.depthwise.weight": "block3.5.mlp.dwconv.dwconv.weight",
        "stages.3.downsample.norm.bias": "patch_embed4.norm.bias",
        "norm.attention.kv.weight": "post_network.0.attn.kv.weight",
        "norm.norm.weight": "norm4.weight",
    }
    if inner:
        public = "block1.1.attn.complex_weight_lh_1_t"
        pairs["stages.0.blocks.1.mixer.scattering.columns.weight1"] = public
    else:
        pairs["head.aux.weight"] = "aux_head.weight"
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours], state[theirs]), ours


def test_public_names_go_into_a_pyramid():
    model = zoo.create_model("svt_s", features_only=True, out_indices=(0, 1))
    assert zoo.load_weights(model, public_state("svt_s")) == []


def complex_of(weight):
    return torch.complex(weight[0], weight[1])


def part_relu(z):
    return torch.complex(z.real.relu(), z.imag.relu())


def test_layers_across_channels_are_complex_products():
    bands = noise(2, 8, 2, 6, 3, 5)
    weights = [noise(2, 4, 2, 2), noise(2, 4, 2), noise(2, 4, 2, 2) / 2, noise(2, 4, 2)]
    w1, b1, w2, b2 = map(complex_of, weights)
    z = torch.complex(bands[:, :, 0], bands[:, :, 1]).unflatten(1, (4, 2))  # B K in 6 h w
    z = torch.einsum("bkiohw,kij->bkjohw", z, w1) + b1[None, :, :, None, None, None]
    z = torch.einsum("bkiohw,kij->bkjohw", part_relu(z), w2) + b2[None, :, :, None, None, None]
    want = torch.stack([z.real, z.imag], dim=3).flatten(1, 2)
    torch.testing.assert_close(mix_channels(bands.flatten(0, 1), 2, weights), want.flatten(0, 1))


def test_layers_along_rows_are_complex_products():
    bands = noise(2, 3, 2, 6, 4, 5)
    weights = [noise(2, 4, 5, 5), noise(2, 4, 5), noise(2, 4, 5, 5), noise(2, 4, 5)]
    w1, b1, w2, b2 = map(complex_of, weights)
    z = torch.complex(bands[:, :, 0], bands[:, :, 1])  # B C 6 h w
    z = part_relu(torch.einsum("bcohi,hij->bcohj", z, w1) + b1)
    z = torch.einsum("bcohi,hij->bcohj", z, w2) + b2
    want = torch.stack([z.real, z.imag], dim=2)
    torch.testing.assert_close(mix_columns(bands.flatten(0, 1), weights), want.flatten(0, 1))


def test_weights_for_maps_of_another_size():
    table = noise(3, 4, 4)
    assert resized(table, 4, 4) is table
    assert resized(table, 6, 9).shape == (3, 6, 9)
    torch.testing.assert_close(resized(torch.ones(3, 4, 4), 7, 5), torch.ones(3, 7, 5))
    matrices = torch.ones(2, 4, 4, 4)
    larger = resized_matrices(matrices, 6, 8)
    torch.testing.assert_close(larger.sum(2), torch.full((2, 6, 8), 4.0)), "sums keep their weight"


def test_the_ablation_interleaves_its_halves():
    module = randomize_parameters(HalfScattering(16, (6, 8)).double())
    x = noise(2, 6, 8, 16)
    y = module(x)
    torch.testing.assert_close(y[..., 1::2], module.scattering(x[..., 8:]))
    filtered = module.depthwise(x[..., :8].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(y[..., 0::2], filtered)


@pytest.mark.parametrize("size", [(7, 9), (6, 5), (1, 2)])
def test_odd_maps_are_continued_and_cut(size):
    module = randomize_parameters(Scattering(8, (6, 6)).double())
    x = noise(2, *size, 8)
    below = torch.cat([x, x[:, -1:]], dim=1) if size[0] % 2 else x
    whole = torch.cat([below, below[:, :, -1:]], dim=2) if size[1] % 2 else below
    torch.testing.assert_close(module(x), module(whole)[:, : size[0], : size[1]])


def test_autocast_leaves_the_scattering_in_single_precision():
    module = randomize_parameters(Scattering(8, (6, 6)))
    x = noise(2, 6, 6, 8).float()
    want = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), want)


def test_half_of_the_largest_logits_of_the_tokens_is_added():
    model, x = shaken("svt_s"), images(2, (64, 96))
    with torch.no_grad():
        row = model.forward_features(x)
        assert row.shape == (2, 448, 1, 1 + 2 * 3)
        tokens = row.flatten(2).transpose(1, 2)
        per_token = model.head.aux(tokens[:, 1:])
        want = model.head.fc(tokens[:, 0]) + 0.5 * per_token.max(1).values
        torch.testing.assert_close(model(x), want)
        model = fresh("svt_s")
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), tokens[:, 0])
        model.reset_classifier(5, "avg")
        assert isinstance(model.head.aux, nn.Identity)
        assert model(x).shape == (2, 5)


def test_the_class_token_starts_as_the_mean_and_the_others_pass():
    model = shaken("svt_s")
    last = torch.randn(2, 448, 2, 3)
    with torch.no_grad():
        row = model.norm(last)
        want = model.norm.norm(last.flatten(2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(row[:, :, 0, 1:], want)


@pytest.mark.usefixtures("quiet_script")
def test_the_published_form_is_a_program_and_is_fused():
    """The contract runs over the ablation, the smallest."""
    model, x = shaken("svt_s", torch.float64), images(2, (64, 97), dtype=torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        want = model(x)
        assert difference(fused(x), want) < 1e-9
        assert difference(torch.jit.script(fused)(x), want) < 1e-9
        assert torch.equal(torch.fx.symbolic_trace(model)(x), want)


def test_no_weights_are_published():
    with pytest.raises(zoo.BadWeights, match="no published weights"):
        zoo.create_model("svt_s", pretrained=True)
