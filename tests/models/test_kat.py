"""KAT: its rational MLP, both initialisations, public names."""

import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images, shaken

import zoo
from zoo.models.kat import GroupRational, KanMlp

NAME = "kat_tiny_patch16_224"


def test_public_names_become_ours():
    state, model = public_state(NAME), zoo.create_model(NAME)
    assert zoo.load_weights(model, state) == []
    own = model.state_dict()
    pairs = {
        "stem.1.position.table": "pos_embed",
        "stem.1.class_token.token": "cls_token",
        "stages.4.blocks.0.mixer.qkv.bias": "blocks.4.attn.qkv.bias",
        "stages.11.blocks.0.mlp.act2.numerator": "blocks.11.mlp.act2.weight_numerator",
        "stages.0.blocks.0.mlp.act1.denominator": "blocks.0.mlp.act1.weight_denominator",
        "head.fc.weight": "head.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours], state[theirs]), ours


def test_functions_come_before_their_layers():
    mlp = KanMlp(16, 32, "swish").double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    want = mlp.fc2(mlp.act2(mlp.fc1(mlp.act1(x))))
    assert torch.equal(mlp(x), want)
    torch.testing.assert_close(mlp.act1(x), x)  # the first one starts as the identity


def test_initial_functions():
    x = torch.linspace(-3, 3, 121)[:, None].expand(-1, 8).contiguous()
    torch.testing.assert_close(GroupRational("identity")(x), x)
    assert (GroupRational("swish")(x) - F.silu(x)).abs().max() < 2e-2
    # The published coefficients of this one were fitted for another form of the denominator.
    assert (GroupRational("gelu")(x) - F.gelu(x)).abs().max() > 0.1


def test_one_numerator_for_all_groups_and_a_denominator_for_each():
    functions = [m for m in fresh(NAME).modules() if isinstance(m, GroupRational)]
    assert len(functions) == 24
    assert {tuple(m.numerator.shape) for m in functions} == {(1, 6)}
    assert {tuple(m.denominator.shape) for m in functions} == {(8, 4)}
    spared = zoo.create_model(NAME).no_weight_decay()
    assert {"stages.3.blocks.0.mlp.act1.denominator", "stem.1.position.table"} <= spared


def test_every_block_is_a_level():
    model = shaken(NAME, features_only=True)
    assert model.feature_info.reduction() == [16] * 12
    with torch.no_grad():
        assert {tuple(m.shape) for m in model(images(1, (70, 100)))} == {(1, 192, 4, 6)}


def test_tables_are_resampled_as_timm_does():
    from timm.layers import resample_abs_pos_embed

    native = fresh(NAME, torch.float64)
    model = zoo.create_model(NAME, img_size=(96, 256)).double().eval()
    zoo.load_weights(model, native.state_dict())
    want = resample_abs_pos_embed(
        native.stem[1].position.table.detach(), [6, 16], num_prefix_tokens=1, verbose=False
    )
    # timm interpolates in single precision.
    torch.testing.assert_close(model.stem[1].position.table.detach(), want, rtol=0, atol=1e-6)
    x = images(2, (96, 256), dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(x), native(x)) < 1e-5


def test_mimetic_initialisation():
    torch.manual_seed(0)
    model = zoo.create_model(NAME, weight_init="mimetic", in_chans=1)
    attention = model.stages[0].blocks[0].mixer
    q, k, v = attention.qkv.weight.chunk(3)
    products = sum(
        q[h * 64 : (h + 1) * 64].T @ k[h * 64 : (h + 1) * 64] for h in range(3)
    )  # each head has the leading part of a matrix near a multiple of the identity
    assert products.diagonal().mean() > 0.3
    # The other way round the rows are orthogonal halves of one matrix: v and proj, 0.4 Z - 0.4 I.
    whole = v @ attention.proj.weight
    assert whole.diagonal().mean().item() == pytest.approx(-0.4, abs=0.02)
    off = whole - torch.diag(whole.diagonal())
    assert off.std().item() == pytest.approx(0.4 / 192**0.5, rel=0.05)
    assert not attention.qkv.bias.any()


@pytest.mark.parametrize("wrong", [{"weight_init": "jax"}, {"rational_init": "relu"}])
def test_unknown_initialisations(wrong):
    with pytest.raises(zoo.BadInput, match=f"unknown {next(iter(wrong))} .* Choices: "):
        zoo.create_model(NAME, **wrong)


def test_images_smaller_than_a_patch():
    with pytest.raises(zoo.BadInput, match="at least 16 x 16"):
        shaken(NAME)(images(1, (15, 64)))
    with pytest.raises(zoo.BadInput, match="img_size=15: at least 16 x 16"):
        zoo.create_model(NAME, img_size=15)
