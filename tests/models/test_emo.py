"""EMO: windows by hand, padding without a mask, public names."""

import json
import math
from pathlib import Path

import pytest
import torch
from support import difference, images, shaken
from torch import nn

import zoo
from zoo.models.emo import MobileBlock, PointwiseMixer, WindowMixer, attend_in_windows

RECORDS = Path(__file__).parents[1] / "reference" / "records"


def windows_by_hand(height, width, side, close):
    """Lists of the pixels (y, x) of each window of a map of whole windows, in their order."""
    rows, columns = height // side, width // side
    found = {}
    for y in range(height):
        for x in range(width):
            key = (y // side, x // side) if close else (y % rows, x % columns)
            found.setdefault(key, []).append((y, x))
    return list(found.values())


def attention_by_hand(q, k, v, side, num_heads, close):
    """Attention inside each window, window by window and head by head; B C H W."""
    y = torch.zeros_like(v)
    d, e = q.shape[1] // num_heads, v.shape[1] // num_heads
    for window in windows_by_hand(q.shape[2], q.shape[3], side, close):
        rows, columns = (torch.tensor(axis) for axis in zip(*window, strict=True))
        for h in range(num_heads):
            qs, ks = (t[:, h * d : (h + 1) * d, rows, columns] for t in (q, k))
            vs = v[:, h * e : (h + 1) * e, rows, columns]
            weights = (qs.transpose(1, 2) @ ks / math.sqrt(d)).softmax(-1)
            y[:, h * e : (h + 1) * e, rows, columns] = vs @ weights.transpose(1, 2)
    return y


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("size", [(6, 9), (3, 6), (3, 3)])
def test_attention_is_that_of_the_windows_written_out(size, close):
    qk, v = (torch.randn(2, c, *size, dtype=torch.float64) for c in (16, 12))
    q, k = qk.chunk(2, dim=1)
    want = attention_by_hand(q, k, v, 3, 2, close=False)
    if close:
        want = want + attention_by_hand(q, k, v, 3, 2, close=True)
    have = attend_in_windows(qk, v, 3, 2, 0.5, close)
    torch.testing.assert_close(have, want)


def test_far_windows_are_spread_over_the_map():
    assert windows_by_hand(4, 6, 2, close=False)[0] == [(0, 0), (0, 3), (2, 0), (2, 3)]
    assert windows_by_hand(4, 6, 2, close=True)[0] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("raw_values", [False, True])
@pytest.mark.parametrize("size", [(4, 5), (1, 1), (6, 3)])
def test_padded_pixels_are_zeros_that_take_part(size, raw_values):
    mixer = WindowMixer(
        8, 12, side=3, head_dim=4, act=nn.GELU, block_windows=not raw_values, raw_values=raw_values
    ).double()
    zoo.reparam.randomize_parameters(mixer)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    padded = torch.zeros(2, 8, *(-(-side // 3) * 3 for side in size), dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = x
    q, k = mixer.qk(padded).chunk(2, dim=1)
    v = padded if raw_values else nn.functional.gelu(mixer.value(padded))
    want = attention_by_hand(q, k, v, 3, 2, close=False)
    if raw_values:
        want = nn.functional.gelu(mixer.value(want))
    else:
        want = want + attention_by_hand(q, k, v, 3, 2, close=True)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), want[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("wrapper", ["none", "net", "net_E", "module."])
def test_public_names_and_wrappers(wrapper):
    record = json.loads((RECORDS / "emo_1m.json").read_text())
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(shape, generator=generator)
        for key, shape, dtype in record["state"]
        if "float" in dtype
    }
    wrapped = {
        "none": state,
        "net": {"net": state, "epoch": 300},
        "net_E": {"net_E": state, "epoch": 300},
        "module.": {"net": {f"module.{key}": value for key, value in state.items()}},
    }[wrapper]
    model = zoo.create_model("emo_1m")
    assert zoo.load_weights(model, wrapped) == []
    block = model.stages[3].blocks[1]
    assert torch.equal(block.mixer.qk.weight, state["stage3.1.qk.conv.weight"])
    assert torch.equal(block.mixer.value.bias, state["stage3.1.v.conv.bias"])
    assert torch.equal(block.norm.weight, state["stage3.1.norm.norm.weight"])
    assert torch.equal(model.stages[1].blocks[0].norm.bias, state["stage1.0.norm.bias"])
    assert torch.equal(model.norm.weight, state["norm.norm.weight"])


def test_the_window_is_no_part_of_the_weights():
    model, x = shaken("emo_1m"), images(2, (160, 208))
    other = zoo.create_model("emo_1m", window_size=10).eval()
    zoo.load_weights(other, model.state_dict())
    with torch.no_grad():
        assert other(x).isfinite().all()
        assert difference(other(x), model(x)) > 1e-3
    for wrong in (0, 7.0, "7", (7, 7)):
        with pytest.raises(zoo.BadInput, match="window_size="):
            zoo.create_model("emo_1m", window_size=wrong)


@pytest.mark.parametrize("name", ["emo_1m", "emo_2m", "emo_5m", "emo_6m"])
def test_the_published_blocks(name):
    with torch.device("meta"):
        model = zoo.create_model(name).eval()
    assert model.feature_info[0]["num_chs"] == 24
    assert [level["reduction"] for level in model.feature_info] == [2, 4, 8, 16, 32]
    for s, stage in enumerate(list(model.stages)[1:], start=1):
        for j, block in enumerate(stage.blocks):
            assert block.residual == (j > 0)
            attends = s > 2 and j > 0
            assert type(block.mixer) is (WindowMixer if attends else PointwiseMixer)
            assert block.local.conv.kernel_size == ((3, 3) if s < 3 else (5, 5))
            assert isinstance(block.local.act, nn.SiLU), "in every stage"
            assert isinstance(block.mixer.act, nn.SiLU if s < 3 else nn.GELU)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("size", [(224, 224), (97, 130)])
@pytest.mark.parametrize("name", ["emo_1m", "emo2_1m_k5_hybrid"])
def test_fused_only_attention_keeps_its_norm(name, size):
    model = shaken(name, torch.float64)
    fused, x = zoo.reparameterize(model), images(2, size, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    for block in (m for m in fused.modules() if isinstance(m, MobileBlock)):
        assert type(block.scale) is nn.Identity
        if isinstance(block.mixer, PointwiseMixer):
            assert getattr(block.norm, "weight", None) is None
        else:
            assert block.norm.weight is not None
            assert block.mixer.scale == 1.0
