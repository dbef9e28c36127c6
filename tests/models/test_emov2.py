"""EMOv2: two kinds of windows on shared queries, keys and values; its names; its variants."""

import json
from pathlib import Path

import pytest
import torch
from support import difference, images, quick, shaken
from torch import nn

import zoo
from zoo.models.emo import MobileBlock, WindowMixer

RECORDS = Path(__file__).parents[1] / "reference" / "records"
VARIANTS = zoo.list_models(family="emov2")


@pytest.mark.parametrize("name", ["emo1_1m", "emo2_1m_k5_hybrid"])
@pytest.mark.parametrize("wrapper", ["none", "net", "net_E"])
def test_public_names_and_wrappers(name, wrapper):
    record = json.loads((RECORDS / f"{name}.json").read_text())
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(shape, generator=generator)
        for key, shape, dtype in record["state"]
        if "float" in dtype
    }
    model = zoo.create_model(name)
    assert zoo.load_weights(model, state if wrapper == "none" else {wrapper: state}) == []
    block = model.stages[3].blocks[1]
    assert torch.equal(block.mixer.qk.weight, state["stage3.1.eops.0.qk.conv.weight"])
    assert torch.equal(block.mixer.value.bias, state["stage3.1.eops.0.v.conv.bias"])
    assert torch.equal(block.scale.gamma, state["stage3.1.ls.gamma"].flatten())
    first = model.stages[3].blocks[0]
    assert torch.equal(first.mixer.value.weight, state["stage3.0.eops.0.net.conv.weight"])
    assert torch.equal(model.stages[0].blocks[0][1].weight, state["stage0.2.conv.weight"])


def test_weights_of_emo_do_not_fit():
    with pytest.raises(zoo.BadWeights, match="does not fit EMO"):
        zoo.load_weights(zoo.create_model("emo1_1m"), shaken("emo_1m").state_dict())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_published_variants(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    mixers = [m for m in model.modules() if isinstance(m, WindowMixer)]
    assert {m.side for m in mixers} == {8 if name.endswith(("_256", "_512")) else 7}
    assert {m.block_windows for m in mixers} == {name.startswith("emo2")}
    assert not any(m.raw_values for m in mixers)
    blocks = [m for m in model.modules() if isinstance(m, MobileBlock)]
    kernels = [b.local.conv.kernel_size[0] for b in blocks]
    sides = {5} if name.startswith("emo2") else {3, 5}
    assert set(kernels) == sides
    assert kernels == sorted(kernels)
    assert all(b.scale.gamma.shape == (b.project.out_channels,) for b in blocks)
    first = model.stages[1].blocks[0]
    assert model.feature_info[0]["num_chs"] == first.mixer.value.in_channels
    assert first.project.out_channels == 2 * first.mixer.value.in_channels


def test_names_with_a_size_differ_in_the_window_alone():
    plain, other = shaken("emo2_1m_k5_hybrid"), shaken("emo2_1m_k5_hybrid_256")
    assert plain.state_dict().keys() == other.state_dict().keys()
    x = images(2, (128, 160))
    with torch.no_grad():
        want = zoo.create_model("emo2_1m_k5_hybrid", window_size=8).eval()
        zoo.load_weights(want, other.state_dict())
        assert torch.equal(want(x), other(x))
        assert difference(plain(x), other(x)) > 1e-3, "the same weights, other windows"


def test_both_kinds_of_windows_are_a_program():
    """The contract runs over the smallest variant, which has one kind."""
    name = "emo2_1m_k5_hybrid"
    model, x = shaken(name, **quick(name, 1)), images(2, (160, 208))
    with torch.no_grad():
        want = model(x)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
        assert difference(torch.export.export(model, (x,), strict=True).module()(x), want) < 1e-5


def test_a_map_of_one_window_counts_twice():
    mixer = WindowMixer(8, 12, side=4, head_dim=4, act=nn.GELU, block_windows=True).double()
    alone = WindowMixer(8, 12, side=4, head_dim=4, act=nn.GELU, block_windows=False).double()
    alone.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), 2 * alone(x))


def test_published_initialisation():
    model = zoo.create_model("emo2_1m_k5_hybrid")
    scales = [m.scale.gamma for m in model.modules() if isinstance(m, MobileBlock)]
    assert len(scales) == 15, "in every block, those that halve the map as well"
    assert all(torch.equal(s, torch.full_like(s, 1e-6)) for s in scales)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
