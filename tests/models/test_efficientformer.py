"""EfficientFormer against timm's, in both public key styles, and at sizes that timm cannot take."""

import functools
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.blocks.attention import AttentionBias, BiasedAttention, attention_bias
from zoo.models.efficientformer import AttentionBlock, EfficientFormer, PoolBlock

# Published names that do not follow from the records: they count blocks through stages.
OWN_LAYOUTS = ("efficientformer_l3", "efficientformer_l7")

NATIVE = (224, 224)
RECORDS = Path(__file__).parents[1] / "reference" / "records"


def fill(model: nn.Module) -> nn.Module:
    """Give every float tensor of a foreign model random values of order one, in place."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
            if key.endswith("running_var"):
                values = 0.5 + values.abs() / 2
            elif tensor.ndim <= 1:
                values = 0.1 * values + (key.endswith("weight") + 0.5 * key.endswith("gamma"))
            else:
                values *= (tensor.shape[0] / tensor.numel()) ** 0.5
            tensor.copy_(values)
    return model.eval()


@functools.cache
def theirs(name):
    """timm's model with weights that tell, and its logits."""
    model = fill(timm.create_model(name))
    with torch.no_grad():
        return model.state_dict(), model(images(2, NATIVE))


def as_original(state):
    """Name timm's tensors as the authors' code does (the words of the two code bases compared)."""
    stem = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}

    def name(key):
        key = re.sub(r"^stem\.(\w+)", lambda m: f"patch_embed.{stem[m[1]]}", key)
        key = re.sub(
            r"^stages\.(\d)\.downsample\.conv", lambda m: f"network.{2 * int(m[1]) - 1}.proj", key
        )
        key = re.sub(
            r"^stages\.(\d)\.downsample\.norm", lambda m: f"network.{2 * int(m[1]) - 1}.norm", key
        )
        key = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"network.{2 * int(m[1])}", key)
        key = re.sub(r"ls(\d)\.gamma$", r"layer_scale_\1", key)
        return re.sub(r"^head_dist", "dist_head", key)

    return {name(key): tensor for key, tensor in state.items()}


def test_the_names_of_the_original_are_those_of_its_record():
    record = json.loads((RECORDS / "efficientformer_l1.json").read_text())
    assert set(as_original(theirs("efficientformer_l1")[0])) == {row[0] for row in record["state"]}


@pytest.mark.parametrize("style", ["timm", "original"])
@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l3"])  # l7 is deeper
def test_public_weights_give_the_public_outputs(name, style):
    state, want = theirs(name)
    if style == "original":
        state = as_original(state)
    with torch.device("meta"):
        model = zoo.create_model(name)
    model = model.to_empty(device="cpu").eval()
    assert zoo.load_weights(model, state) == []
    with torch.no_grad():
        assert difference(model(images(2, NATIVE)), want) < 1e-4


@pytest.mark.parametrize("style", ["timm", "original"])
@pytest.mark.parametrize("out_indices", [None, (0, 1)])
def test_public_weights_go_into_pyramids(style, out_indices):
    state, _ = theirs("efficientformer_l1")
    peer = timm.create_model("efficientformer_l1").eval()
    peer.load_state_dict(state)
    model = zoo.create_model(
        "efficientformer_l1", features_only=True, out_indices=out_indices
    ).eval()
    zoo.load_weights(model, as_original(state) if style == "original" else state)
    x = images(2, NATIVE)
    with torch.no_grad():
        want = peer.forward_intermediates(x, out_indices, intermediates_only=True)
        assert difference(model(x), want) < 1e-4


def test_flattening_counts_as_a_block_in_public_names():
    model = zoo.create_model("efficientformer_l1")
    kinds = [type(block) for block in model.stages[3].blocks]
    assert kinds == [PoolBlock] * 3 + [AttentionBlock]
    state = as_original(theirs("efficientformer_l1")[0])
    assert "network.6.4.token_mixer.qkv.weight" in state
    zoo.load_weights(model, state)
    ours = model.stages[3].blocks[3].attention.qkv.weight
    assert torch.equal(ours, state["network.6.4.token_mixer.qkv.weight"])


def test_a_network_without_its_last_block_is_named():
    state = {
        k: v for k, v in theirs("efficientformer_l1")[0].items() if "stages.3.blocks.4" not in k
    }
    with pytest.raises(zoo.BadWeights, match=r"missing stages\.3\.blocks\.3\.\S+, .* more"):
        zoo.load_weights(fresh("efficientformer_l1"), state)


@pytest.mark.slow
@pytest.mark.parametrize("img_size", [64, (192, 256), 384])
@pytest.mark.parametrize("style", ["timm", "original", "own"])
def test_tables_are_resampled_once_as_they_would_be_each_time(img_size, style):
    state = theirs("efficientformer_l1")[0]
    native = zoo.create_model("efficientformer_l1").eval()
    zoo.load_weights(native, state)
    states = {"timm": state, "original": as_original(state), "own": native.state_dict()}
    model = zoo.create_model("efficientformer_l1", img_size=img_size).eval()
    zoo.load_weights(model, states[style])
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    assert model.stages[3].blocks[3].attention.bias.grid == (-(-size[0] // 32), -(-size[1] // 32))
    x = images(2, size)
    with torch.no_grad():
        assert difference(model(x), native(x)) < 1e-4


def test_the_table_at_its_own_size_is_the_published_formula():
    table = torch.randn(8, 49)
    bias = attention_bias(table, (7, 7), 7, 7)
    positions = [(y, x) for y in range(7) for x in range(7)]
    for i, (y, x) in enumerate(positions):
        for j, (v, u) in enumerate(positions):
            assert torch.equal(bias[:, i, j], table[:, abs(y - v) * 7 + abs(x - u)])


def test_a_larger_map_keeps_the_ends_of_the_table():
    table = torch.randn(8, 49, dtype=torch.float64)
    bias = attention_bias(table, (7, 7), 5, 9)
    torch.testing.assert_close(bias[:, 0, 0], table[:, 0])
    torch.testing.assert_close(bias[:, 0, -1], table[:, -1])
    assert torch.equal(bias, bias.transpose(1, 2)), "an offset and its opposite are one"


def test_the_bias_follows_the_table_after_an_evaluation():
    model, x = fresh("efficientformer_l1"), images(2)
    with torch.no_grad():
        before = model(x)
        for module in model.modules():
            if isinstance(module, AttentionBias):
                module.table.mul_(-30)
        assert difference(model(x), before) > 1e-3, "a cached bias would still be in use"
    for _ in range(2):
        model(x).sum().backward()


def test_attention_is_the_written_out_formula():
    module = BiasedAttention(
        24, AttentionBias(2, (3, 4)), num_heads=2, key_dim=4, value_ratio=3
    ).double()
    nn.init.normal_(module.bias.table)
    x = torch.randn(2, 12, 24, dtype=torch.float64)
    per_head = module.qkv(x).view(2, 12, 2, 4 + 4 + 12)
    q, k, v = (part.transpose(1, 2) for part in per_head.split([4, 4, 12], dim=-1))
    scores = q @ k.transpose(-2, -1) / 2 + attention_bias(module.bias.table, (3, 4), 3, 4)
    want = module.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 12, 24))
    torch.testing.assert_close(module(x, 3, 4), want)


def test_pooling_does_not_count_the_padding():
    block = shaken("efficientformer_l1").stages[0].blocks[0]
    ones = torch.ones(1, 48, 5, 5)
    with torch.no_grad():
        mixed_only = block(ones) - block.scale2(block.mlp(ones))
    torch.testing.assert_close(mixed_only, ones)  # the mean of ones minus one is nothing


@pytest.mark.parametrize("wrong", [0, -3, 224.5, "224", (64,), (64, 64.0), True, {}])
def test_sizes_that_cannot_work(wrong):
    with pytest.raises(zoo.BadInput, match="img_size="):
        zoo.create_model("efficientformer_l1", img_size=wrong)


def test_published_initialisation():
    model = EfficientFormer(depths=(1, 1, 1, 2), dims=(32, 32, 48, 64), num_attention=1)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert all(torch.equal(b.scale1.gamma, torch.full_like(b.scale1.gamma, 1e-5)) for b in blocks)
    attention = blocks[-1].attention
    assert not attention.bias.table.any()
    assert attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert blocks[0].mlp.fc1.conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, nn.Linear))
