"""TinyViT against timm's, in both public key styles, at sizes that pad its windows."""

import functools
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from support import difference, fresh, images, shaken
from test_efficientformer import fill
from timm.models.tiny_vit import resize_rel_pos_bias_table_levit
from torch import nn

import zoo
from zoo.blocks.attention import attention_bias
from zoo.models.tinyvit import WindowAttention, WindowBias, from_windows, to_windows

RECORDS = Path(__file__).parents[1] / "reference" / "records"
SIZE = (200, 264)  # maps of 25 x 33, 13 x 17 and 7 x 9 in windows of 7, 14 and 7


@functools.cache
def theirs(name):
    model = fill(timm.create_model(name, num_classes=7))
    with torch.no_grad():
        return model.state_dict(), model(images(2, SIZE))


def as_original(state):
    """Name timm's tensors as the authors' code does."""

    def name(key):
        key = re.sub(
            r"^patch_embed\.conv(\d)", lambda m: f"patch_embed.seq.{2 * int(m[1]) - 2}", key
        )
        key = re.sub(
            r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        key = re.sub(r"^stages", "layers", key).replace(".conv.", ".c.")
        return key.replace("head.norm", "norm_head").replace("head.fc", "head")

    return {name(key): tensor for key, tensor in state.items()}


def load(name, state, **kwargs):
    with torch.device("meta"):
        model = zoo.create_model(name, **kwargs)
    model = model.to_empty(device="cpu").eval()
    assert zoo.load_weights(model, state) == []
    return model


def test_the_names_of_the_original_are_those_of_its_record():
    record = json.loads((RECORDS / "tiny_vit_5m_224.json").read_text())
    assert set(as_original(theirs("tiny_vit_5m_224")[0])) == {row[0] for row in record["state"]}


@pytest.mark.parametrize("style", ["timm", "original"])
@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "tiny_vit_21m_384"])
def test_public_weights_give_the_public_outputs(name, style):
    state, want = theirs(name)
    if style == "original":  # some published files still hold the index table
        state = as_original(state) | {
            "layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(49, 49, dtype=torch.int64)
        }
        state = {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 29}
    model = load(name, state, num_classes=7)
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), want) < 1e-4


def test_levels_are_those_of_timm():
    state, _ = theirs("tiny_vit_5m_224")
    peer = timm.create_model("tiny_vit_5m_224", num_classes=7).eval()
    peer.load_state_dict(state)
    model = zoo.create_model("tiny_vit_5m_224", features_only=True).eval()
    zoo.load_weights(model, state)
    x = images(2, SIZE)
    with torch.no_grad():
        want = peer.forward_intermediates(x, intermediates_only=True)
        assert difference(model(x), want) < 1e-4
    assert model.feature_info.channels() == [64, 128, 160, 320]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize("side", [5, 7, 12, 16])
def test_tables_of_other_windows_are_resampled_as_in_timm(side):
    table = torch.randn(3, 49)
    want = resize_rel_pos_bias_table_levit(table.T, (side * side, 3)).T
    torch.testing.assert_close(
        WindowBias(len(table), (side, side)).fit_table(table), want, rtol=1e-5, atol=1e-5
    )
    assert WindowBias(len(table), (7, 7)).fit_table(table) is table


@pytest.mark.parametrize("style", ["timm", "original", "own"])
def test_weights_of_224_go_into_384(style):
    state = theirs("tiny_vit_21m_224")[0]
    if style == "original":
        state = as_original(state)
    elif style == "own":
        state = load("tiny_vit_21m_224", state, num_classes=7).state_dict()
    model = load("tiny_vit_21m_384", state, num_classes=7)
    first = model.stages[1].blocks[0].window.attention.bias
    assert first.grid == (12, 12)
    table = theirs("tiny_vit_21m_224")[0]["stages.1.blocks.0.attn.attention_biases"]
    assert torch.equal(first.table, WindowBias(len(table), (12, 12)).fit_table(table))


@pytest.mark.parametrize("size", [(6, 6), (7, 9), (12, 5), (1, 1), (6, 7)])
def test_windows_are_cut_row_by_row_and_put_back(size):
    x = torch.randn(2, *size, 4)
    windows = to_windows(x, 6)
    rows, columns = (-(-side // 6) for side in size)
    assert windows.shape == (2 * rows * columns, 36, 4)
    padded = torch.zeros(2, rows * 6, columns * 6, 4)
    padded[:, : size[0], : size[1]] = x
    for b in range(2):
        for i in range(rows):
            for j in range(columns):
                want = padded[b, 6 * i : 6 * i + 6, 6 * j : 6 * j + 6].reshape(36, 4)
                assert torch.equal(windows[(b * rows + i) * columns + j], want)
    assert torch.equal(from_windows(windows, 6, 2, *size), x)


def test_what_is_padded_takes_part_as_the_shift_of_the_norm():
    module = WindowAttention(8, 2, 3).double()
    zoo.reparam.randomize_parameters(module)
    x = torch.randn(1, 8, 2, 4, dtype=torch.float64)
    padded = torch.zeros(1, 3, 6, 8, dtype=torch.float64)
    padded[:, :2, :4] = x.permute(0, 2, 3, 1)
    normed = module.norm(padded)
    assert torch.equal(normed[0, 2, 5], module.norm.bias)
    bias = attention_bias(module.attention.bias.table, (3, 3), 3, 3)
    for j in range(2):
        tokens = normed[0, :, 3 * j : 3 * j + 3].reshape(9, 8)
        per_head = module.attention.qkv(tokens).view(9, 2, 12)
        q, k, v = (part.transpose(0, 1) for part in per_head.split(4, dim=-1))
        weights = (q @ k.transpose(1, 2) / 2 + bias).softmax(-1)
        want = module.attention.proj((weights @ v).transpose(0, 1).reshape(9, 8)).view(3, 3, 8)
        have = module(x)[0, :, :, 3 * j : 3 * j + 3].permute(1, 2, 0)
        torch.testing.assert_close(have, want[:2, : have.shape[1]])


def test_the_stream_passes_the_local_convolution_without_a_shortcut():
    block = shaken("tiny_vit_5m_224").stages[1].blocks[0]
    x = images(1, (9, 9), 128)
    with torch.no_grad():
        y = block.local(x + block.window(x))
        tokens = y.permute(0, 2, 3, 1)
        want = tokens + block.mlp(block.norm(tokens))
        torch.testing.assert_close(block(x), want.permute(0, 3, 1, 2))
        first = shaken("tiny_vit_5m_224").stages[0].blocks[0]
        assert (first(images(1, (9, 9), 64)) > -0.2).all(), "GELU acts on the sum"


def test_other_windows_than_the_published():
    model = fresh("tiny_vit_5m_224", window_sizes=(3, 5, 2))
    with torch.no_grad():
        assert model(images(2)).isfinite().all()
    for wrong in [(7, 14), (7, 0, 7), (7, 7.0, 7), ()]:
        with pytest.raises(zoo.BadInput, match="window_sizes="):
            zoo.create_model("tiny_vit_5m_224", window_sizes=wrong)


@pytest.mark.parametrize("size", [(224, 224), (200, 264)])
def test_fused_it_has_no_affine_norms_left(size):
    model = shaken("tiny_vit_5m_224", torch.float64)
    fused = zoo.reparameterize(model)
    x = images(2, size, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    norms = [m for m in fused.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 10 + 1
    assert all(norm.weight is None for norm in norms), "that of the head, too"


def test_published_initialisation():
    model = zoo.create_model("tiny_vit_5m_224")
    assert all(not block.project.norm.weight.any() for block in model.stages[0].blocks)
    window = model.stages[2].blocks[0].window
    assert not window.attention.bias.table.any()
    assert window.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    spared = model.no_weight_decay()
    assert len(spared) == 10
    assert all(name.endswith("bias.table") for name in spared)
