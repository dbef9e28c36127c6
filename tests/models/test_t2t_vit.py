"""T2T-ViT: random features that stay as loaded, soft splits, both tokenisers, public names."""

import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images, quick, shaken
from torch import nn

import zoo
from zoo.models.t2t_vit import SoftSplitAttention, feature_attention
from zoo.reparam import randomize_parameters

# Published names that do not follow from the records: more blocks.
OWN_LAYOUTS = ("t2t_vit_19", "t2t_vit_24", "t2t_vit_t_19", "t2t_vit_t_24")

PERFORMER, SOFTMAX = "t2t_vit_7", "t2t_vit_t_14"


@pytest.mark.parametrize("name", [PERFORMER, SOFTMAX])
def test_public_names_become_ours(name):
    state, model = public_state(name), zoo.create_model(name)
    assert zoo.load_weights(model, state) == []
    own = model.state_dict()
    qkv = "kqv" if name == PERFORMER else "attn.qkv"
    pairs = {
        "stem.qkv.weight": f"tokens_to_token.attention1.{qkv}.weight",
        "stages.1.downsample.qkv.weight": f"tokens_to_token.attention2.{qkv}.weight",
        "stages.2.downsample.0.weight": "tokens_to_token.project.weight",
        "stages.2.downsample.1.position.table": "pos_embed",
        "stages.2.blocks.6.mixer.qkv.weight": "blocks.6.attn.qkv.weight",
        "stages.0.blocks.0.norm.bias": "tokens_to_token.attention1.norm2.bias",
    }
    if name == PERFORMER:
        pairs["stem.features"] = "tokens_to_token.attention1.w"
        pairs["stages.1.blocks.0.mlp.fc2.bias"] = "tokens_to_token.attention2.mlp.2.bias"
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours].flatten(), state[theirs].flatten()), ours


def test_the_head_for_tokens_of_another_training_is_left_out():
    state = public_state(PERFORMER)
    extra = {"aux_head.weight": torch.zeros(1000, 256), "aux_head.bias": torch.zeros(1000)}
    assert zoo.load_weights(zoo.create_model(PERFORMER), state | extra) == []


def test_what_is_fixed_is_loaded_and_not_trained():
    model = zoo.create_model(PERFORMER)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {
        "stem.features",
        "stages.1.downsample.features",
        "stages.2.downsample.1.position.table",
    }
    assert not model.no_weight_decay() & fixed
    state = public_state(PERFORMER)
    zoo.load_weights(model, state)
    before = {name: model.get_parameter(name).clone() for name in fixed}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5, lr=0.1)
    model(images(2)).square().mean().backward()
    optimizer.step()
    for name in fixed:
        assert torch.equal(model.get_parameter(name), before[name])
    assert torch.equal(model.stem.features, state["tokens_to_token.attention1.w"])


def test_fresh_features_are_orthogonal():
    w = zoo.create_model(PERFORMER).stem.features
    torch.testing.assert_close(w @ w.T, 32 * torch.eye(32), atol=1e-4, rtol=0)


def test_feature_attention_is_the_written_out_formula():
    torch.manual_seed(0)
    k, q, v = (torch.randn(2, 7, 6, dtype=torch.float64) for _ in range(3))
    w = torch.randn(3, 6, dtype=torch.float64)

    def phi(z):
        return torch.exp(w @ z - z.dot(z) / 2) / 3**0.5

    y = feature_attention(k, q, v, w)
    for b in range(2):
        for t in range(7):
            weights = torch.stack([phi(q[b, t]) @ phi(k[b, s]) for s in range(7)])
            want = (weights[:, None] * v[b]).sum(0) / (weights.sum() + 1e-8)
            torch.testing.assert_close(y[b, t], want)


def test_feature_attention_keeps_single_precision_under_autocast():
    torch.manual_seed(0)
    k, q, v = (torch.randn(1, 50, 16) for _ in range(3))
    w = torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(feature_attention(k, q, v, w), feature_attention(k, q, v, w))
        inside = feature_attention(k, q, v, w)
    assert torch.equal(inside, feature_attention(k, q, v, w))
    half = feature_attention(k.half(), q.half(), v.half(), w)
    assert half.dtype == torch.float16
    assert difference(half.float().transpose(0, 1), inside.transpose(0, 1)) < 0.1


def test_softmax_is_scaled_by_the_width_of_the_patches():
    module = SoftSplitAttention(3, 8, kernel_size=7, stride=4, performer=False)
    module = randomize_parameters(module.double()).eval()
    x = torch.randn(1, 3, 16, 20, dtype=torch.float64)
    u = module.norm(F.unfold(x, 7, padding=2, stride=4).transpose(1, 2))
    q, k, v = F.linear(u, module.qkv.weight.flatten(1)).chunk(3, -1)
    weights = (q @ k.transpose(1, 2) / 147**0.5).softmax(-1)
    want = v + module.proj(weights @ v)
    torch.testing.assert_close(module(x).flatten(2).transpose(1, 2), want)


@pytest.mark.parametrize("name", [PERFORMER, SOFTMAX])
@pytest.mark.parametrize("size", [(64, 96), (95, 71)])
def test_levels_and_tokens_of_any_size(name, size):
    model, x = shaken(name, features_only=True), images(1, size)
    first = [(side + 1) // 4 for side in size]
    want = [first, [-(-side // 2) for side in first], [-(-side // 4) for side in first]]
    with torch.no_grad():
        assert [list(m.shape[2:]) for m in model(x)] == want
        rows = shaken(name).forward_features(x)
    assert rows.shape[2:] == (1, 1 + want[2][0] * want[2][1])


@pytest.mark.parametrize("img_size", [(96, 128), 384])
def test_tables_are_resampled_once_as_they_would_be_each_time(img_size):
    native = fresh(PERFORMER, torch.float64, token_dim=8)
    model = zoo.create_model(PERFORMER, token_dim=8, img_size=img_size).double().eval()
    zoo.load_weights(model, native.state_dict())
    x = images(2, (96, 128), dtype=torch.float64)
    table = model.stages[2].downsample[1].position
    side = (24, 24) if img_size == 384 else (6, 8)
    assert table.grid == side
    if img_size != 384:
        with torch.no_grad():
            assert difference(model(x), native(x)) < 1e-9


def test_dropout_of_the_performer_is_live_in_training():
    drops = [m.p for m in zoo.create_model(PERFORMER).modules() if isinstance(m, nn.Dropout)]
    assert sorted(drops) == [0.0, 0.1, 0.1, 0.1, 0.1], "the head's, and four in the first steps"
    drops = [m.p for m in zoo.create_model(SOFTMAX).modules() if isinstance(m, nn.Dropout)]
    assert not any(drops)


@pytest.mark.usefixtures("quiet_script")
def test_the_softmax_form_is_fused_and_a_program_too():
    model, x = shaken(SOFTMAX, torch.float64), images(2, (48, 65), dtype=torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        want = model(x)
        assert difference(fused(x), want) < 1e-9
        assert difference(torch.jit.script(fused)(x), want) < 1e-9
        assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
    assert fused.stem.norm.weight is None
    assert fused.stem.scale == 1.0


def test_the_softmax_form_exports_to_onnx(tmp_path):
    model = shaken(SOFTMAX, **quick(SOFTMAX, 1))
    assert zoo.export(model, "onnx", tmp_path, input_size=(1, 3, 48, 64)).agreement.proven


def test_images_smaller_than_a_token():
    with pytest.raises(zoo.BadInput, match="at least 16 x 16"):
        shaken(PERFORMER)(images(1, (15, 64)))
    with pytest.raises(zoo.BadInput, match="img_size=15: at least 16 x 16"):
        zoo.create_model(PERFORMER, img_size=15)
