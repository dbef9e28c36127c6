"""VoVNet against timm's, in both public key styles, with and without shortcuts."""

import functools
import re

import pytest
import timm
import torch
from support import difference, fresh, images, shaken
from test_efficientformer import fill
from timm.layers import DropPath, EcaModule, EffectiveSEModule
from torch import nn

import zoo
from zoo.blocks.pools import HalvingPool, least_side
from zoo.blocks.separable import SeparableConvNorm
from zoo.models.vovnet import OneShotAggregation

OF_TIMM = [name for name in zoo.list_models(family="vovnet") if timm.is_model(name)]
SIZE = (97, 130)


@functools.cache
def theirs(name):
    model = fill(timm.create_model(name))
    with torch.no_grad():
        return model.state_dict(), model(images(2, SIZE))


def as_original(state):
    """Name the tensors of timm's V1 as the authors' code does."""

    def name(key):
        key = re.sub(r"^stem\.(\d)\.(\w+)", lambda m: f"stem.stem_{int(m[1]) + 1}/{m[2]}", key)

        def module(m):
            stage, block, rest = int(m[1]) + 2, int(m[2]) + 1, m[3]
            osa = f"OSA{stage}_{block}"
            rest = re.sub(r"^conv_mid\.(\d)\.", rf"layers.\1.{osa}_\1/", rest)
            rest = rest.replace("conv_concat.", f"concat.{osa}_concat/")
            return f"stage{stage}.{osa}.{rest}"

        key = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.(.*)", module, key)
        return re.sub(r"/bn", "/norm", key).replace("head.fc", "classifier")

    return {name(key): tensor for key, tensor in state.items()}


def as_detectron2(state):
    """Name the tensors of timm's "ese" models as vovnet-detectron2 does; it has no classifier."""
    layers = (("conv_dw", "dw_conv3x3"), ("conv_pw", "pw_conv1x1"), ("bn", "pw_norm"))

    def name(key):
        for part, new in layers:
            if part != "bn" or separable(key):
                key = re.sub(rf"\.{part}\.(\w+)$", rf".{new}.\1", key)
        key = re.sub(r"^stem\.(\d)\.", lambda m: f"stem.stem_{int(m[1]) + 1}/", key)

        def module(m):
            stage, block, rest = int(m[1]) + 2, int(m[2]) + 1, m[3]
            osa = f"OSA{stage}_{block}"
            rest = re.sub(r"^conv_mid\.(\d)\.", rf"layers.\1.{osa}_\1/", rest)
            rest = rest.replace("conv_concat.", f"concat.{osa}_concat/").replace("attn.", "ese.")
            rest = rest.replace("conv_reduction.", f"conv_reduction.{osa}_reduction_0/")
            return f"stage{stage}.{osa}.{rest}"

        key = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.(.*)", module, key)
        return re.sub(r"/bn", "/norm", key)

    def separable(key):
        return key.rsplit(".bn.", 1)[0] + ".conv_dw.weight" in state

    return {name(key): tensor for key, tensor in state.items() if not key.startswith("head.")}


@pytest.mark.parametrize(
    "name", ["ese_vovnet19b_dw", "ese_vovnet19b_slim", "ese_vovnet19b_slim_dw"]
)
def test_weights_of_detectron2_have_all_but_the_classifier(name):
    state, _ = theirs(name)
    public = as_detectron2(state)
    assert "stage2.OSA2_1.ese.fc.weight" in public
    pyramid = zoo.create_model(name, features_only=True).eval()
    assert zoo.load_weights(pyramid, public) == []
    model = zoo.create_model(name)
    lines = zoo.load_weights(model, public, strict=False)
    assert lines == ["missing head.fc.weight, head.fc.bias"]
    want = zoo.create_model(name)
    zoo.load_weights(want, state)
    own, others = model.state_dict(), want.state_dict()
    assert all(torch.equal(own[key], others[key]) for key in own if not key.startswith("head."))


def load(name, state):
    with torch.device("meta"):
        model = zoo.create_model(name)
    model = model.to_empty(device="cpu").eval()
    assert zoo.load_weights(model, state) == []
    return model


@pytest.mark.parametrize("name", OF_TIMM)
def test_weights_of_timm_give_its_outputs(name):
    state, want = theirs(name)
    with torch.no_grad():
        assert difference(load(name, state)(images(2, SIZE)), want) < 1e-4


@pytest.mark.parametrize("wrapped", [False, True])
def test_names_of_the_authors(wrapped):
    state, want = theirs("vovnet39a")
    state = as_original(state)
    assert "stage4.OSA4_2.layers.3.OSA4_2_3/norm.bias" in state
    assert "stage5.OSA5_1.concat.OSA5_1_concat/conv.weight" in state
    if wrapped:  # as the authors' training script saves it
        state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    with torch.no_grad():
        assert difference(load("vovnet39a", state)(images(2, SIZE)), want) < 1e-4


def test_the_authors_add_the_input_of_a_module_where_timm_does_not():
    state, want = theirs("vovnet39a")
    model, x = load("vovnet39", as_original(state)), images(2, SIZE)
    peer = timm.create_model("vovnet39a").eval()
    peer.load_state_dict(state)
    for stage in peer.stages:
        for block in list(stage.blocks)[1:]:
            block.residual = True
            block.drop_path = None
    with torch.no_grad():
        assert difference(model(x), peer(x)) < 1e-4
        assert difference(model(x), want) > 0.1
    shortcuts = [[b.residual for b in s.blocks] for s in list(model.stages)[1:]]
    assert shortcuts == [[False], [False], [False, True], [False, True]]


@pytest.mark.parametrize("name", ["ese_vovnet19b_dw", "vovnet57a"])
def test_levels_are_those_of_timm(name):
    state, _ = theirs(name)
    peer = timm.create_model(name, features_only=True).eval()
    flat = {re.sub(r"^(stem|stages)\.(\d)", r"\1_\2", key): t for key, t in state.items()}
    assert not peer.load_state_dict(flat, strict=False).missing_keys
    model = zoo.create_model(name, features_only=True).eval()
    zoo.load_weights(model, state)
    assert model.feature_info.channels() == peer.feature_info.channels()
    assert model.feature_info.reduction() == peer.feature_info.reduction() == [2, 4, 8, 16, 32]
    with torch.no_grad():
        assert difference(model(images(2, SIZE)), peer(images(2, SIZE))) < 1e-5


def test_gates_sit_in_the_last_module_of_each_stage():
    kinds = {"ese_vovnet39b": EffectiveSEModule, "eca_vovnet39b": EcaModule}
    for name, kind in kinds.items():
        with torch.device("meta"):
            stages = list(zoo.create_model(name).stages)[1:]
        for stage in stages:
            *others, last = stage.blocks
            assert type(last.gate) is kind
            assert all(type(block.gate) is nn.Identity for block in others)


@pytest.mark.parametrize("side", [28, 27, 14, 7, 3, 2])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_pooling_rounds_down(side, kernel_size):
    x = torch.rand(1, 1, side, side)
    y = HalvingPool(kernel_size, least=1)(x)
    assert y.shape[2:] == (side // 2, side // 2)
    window = x[..., -(side % 2) - 2 :, :2] if side % 2 == 0 else x[..., side - 3 :, :2]
    assert y[..., -1, 0] >= window[..., :2, :].amax()


def test_the_smallest_image():
    model = shaken("ese_vovnet19b_slim_dw")
    least = least_side(4, 3)
    with torch.no_grad():
        assert model.forward_features(images(2, (least, least))).shape[2:] == (1, 1)
        with pytest.raises(zoo.BadInput, match=r"a feature map of 1 x 2 .* at least 29 x 29"):
            model(images(2, (least - 1, least)))
        # Up to the stage that cannot be halved any more, smaller images are taken.
        cut = shaken("ese_vovnet19b_slim_dw", features_only=True, out_indices=(0, 1))
        assert cut(images(2, (7, 5)))[-1].shape[2:] == (2, 2)


def test_stochastic_depth_needs_a_shortcut():
    for name in ("vovnet27_slim", "vovnet39a", "ese_vovnet19b_dw"):
        with pytest.raises(zoo.BadInput, match=r"drop_path_rate=0\.1: no module"):
            zoo.create_model(name, drop_path_rate=0.1)
    model = fresh("vovnet39", drop_path_rate=0.5)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    block = next(b for b in model.stages[4].blocks if b.residual)
    dropped = shaken("vovnet39").stages[4].blocks[1]
    x = images(8, (3, 3), 1024)
    with torch.no_grad():
        torch.manual_seed(1)
        for module in block.modules():
            if isinstance(module, DropPath):
                module.train()
        out = block(x)
        kept = [not torch.equal(a, b) for a, b in zip(out, x, strict=True)]
        assert 0 < sum(kept) < 8, "some images keep their module, the others only the shortcut"
        want = x + 2 * (dropped(x) - x)
        for i in range(8):
            if kept[i]:
                torch.testing.assert_close(out[i], want[i], rtol=1e-4, atol=1e-4)


def test_fused_modules_keep_one_convolution_each():
    model = zoo.reparameterize(shaken("ese_vovnet19b_slim_dw"))
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    links = [m for m in model.modules() if isinstance(m, SeparableConvNorm)]
    assert len(links) == 2 + 3 * 4
    assert all(m.conv.depthwise.bias is None for m in links), "the norm is in the 1x1 convolution"
    assert all(m.conv.pointwise.bias is not None for m in links)


def test_the_joined_map_has_the_published_width():
    widths = {
        "vovnet27_slim": [448, 528, 736, 944],
        "vovnet39": [768, 1056, 1472, 1728, 1888, 2144],
    }
    for name, want in widths.items():
        with torch.device("meta"):
            model = zoo.create_model(name)
        found = [m.join.conv.in_channels for m in model.modules() if type(m) is OneShotAggregation]
        assert found == want
