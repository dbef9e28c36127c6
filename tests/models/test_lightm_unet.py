"""LightM-UNet: two and three dimensions by the same blocks, levels, heads, public keys."""

import json
from pathlib import Path

import pytest
import torch
from support import difference, fresh, inputs, mean_difference, shaken
from torch import nn

import zoo
from zoo.blocks.separable import SeparableConv
from zoo.models.lightm_unet import EncoderBlock, Mamba, MambaLayer
from zoo.profiling.fusing import report

RECORD = Path(__file__).parents[1] / "reference" / "records" / "lightm_unet_2d.json"
ALL = zoo.list_models(family="lightm_unet")
# Parameters of the public code.
PARAMS = {"lightm_unet_2d": 5_011_765, "lightm_unet_3d": 5_015_766, "lightm_unet_3d_8": 381_813}
BOTH = ["lightm_unet_2d", "lightm_unet_3d_8"]
SMALL = dict(init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_those_of_the_public_code(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]
    assert model.in_chans == zoo.model_info(name)["input"]["size"][0]


def test_one_set_of_blocks_serves_both_dimensions():
    flat = fresh("lightm_unet_2d", torch.float64, **SMALL)
    solid = fresh("lightm_unet_2d", torch.float64, **SMALL, spatial_dims=3)
    kinds = [[type(m).__name__.removesuffix("2d").removesuffix("3d") for m in net.modules()]
             for net in (flat, solid)]  # fmt: skip
    assert kinds[0] == kinds[1]
    assert flat.state_dict().keys() == solid.state_dict().keys()


def test_a_plane_is_a_volume_of_one_slice():
    layers = [SeparableConv(8, 8, axes=axes).double() for axes in (3, 2)]
    layers[0].depthwise.weight.data[:, :, 1] = layers[1].depthwise.weight.data
    layers[0].pointwise.weight.data[:, :, 0] = layers[1].pointwise.weight.data
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layers[0](x[:, :, None])[:, :, 0], layers[1](x))
    encoder = EncoderBlock(8).double()
    torch.testing.assert_close(encoder(x[:, :, None])[:, :, 0], encoder(x))


def test_a_mamba_layer_is_the_written_out_formula():
    """One norm, twice; the residual is not normalised; positions row by row."""
    torch.manual_seed(0)
    layer = MambaLayer(8, 12).double()
    for parameter in (layer.norm.weight, layer.norm.bias, layer.scale.gamma):
        nn.init.normal_(parameter)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    rows = torch.stack([x[:, :, i, j] for i in range(3) for j in range(5)], dim=1)
    y = layer.norm(layer.mamba(layer.norm(rows)) + layer.scale.gamma * rows)
    want = (y @ layer.proj.weight.T + layer.proj.bias).transpose(1, 2).reshape(2, 12, 3, 5)
    torch.testing.assert_close(layer(x), want)
    fused = layer.eval().fused()
    torch.testing.assert_close(fused(x), want)
    assert fused.norm.weight is None
    assert layer.norm.weight is not None


@pytest.mark.parametrize("name", BOTH)
def test_levels_are_those_of_the_encoder(name):
    model, x = shaken(name), inputs(name, which=1)
    pyramid = shaken(name, features_only=True)
    first = zoo.create_model(name).head.num_features
    assert pyramid.feature_info.channels() == [first, 2 * first, 4 * first, 8 * first]
    assert pyramid.feature_info.reduction() == [1, 2, 4, 8]
    with torch.no_grad():
        maps = pyramid(x)
        for stride, one in zip((1, 2, 4, 8), maps, strict=True):
            assert tuple(one.shape[2:]) == tuple(side // stride for side in x.shape[2:])
        drawn, levels = model.forward_intermediates(x)
        assert all(torch.equal(a, b) for a, b in zip(levels, maps, strict=True))
        assert torch.equal(drawn, model.forward_features(x))
        assert torch.equal(model.decode(maps, x), drawn)
        assert drawn.shape == (2, first, *x.shape[2:])
        alone = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
        assert torch.equal(alone[0], maps[1])


@pytest.mark.parametrize("name", BOTH)
def test_a_batch_is_its_images_one_by_one(name):
    model, x = shaken(name, torch.float64), inputs(name, 3, 1, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
        assert difference(alone, model(x)) < 1e-10


@pytest.mark.parametrize("name", BOTH)
def test_a_step_of_training(name):
    torch.manual_seed(0)
    model, x = zoo.create_model(name, **SMALL).double(), inputs(name, dtype=torch.float64)
    labels = torch.randint(0, 2, (2, *x.shape[2:]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BOTH)
def test_half_precision_trains_on_large_images(name, dtype):
    torch.manual_seed(0)
    model, x = zoo.create_model(name, **SMALL), 30 * inputs(name, which=1)
    with torch.autocast("cpu", dtype):
        y = model(x)
    assert y.isfinite().all()
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert mean_difference(y.float(), model(x)) < 0.25


@pytest.mark.parametrize("name", BOTH)
def test_the_classifier_is_exchanged(name):
    model, x = fresh(name), inputs(name)
    with torch.no_grad():
        features = model.forward_features(x)
        seen = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.head.fc(seen), model(x))
        model.reset_classifier(7)
        assert model(x).shape == (2, 7, *x.shape[2:])
        assert model.num_classes == model.get_classifier().out_channels == 7
        assert not model.head.fc.training
        model.reset_classifier(0)
        assert torch.equal(model(x), seen)
    assert zoo.create_model(name, num_classes=0, **SMALL).num_classes == 0
    with pytest.raises(zoo.BadInput, match="global_pool='avg'"):
        model.reset_classifier(7, "avg")
    with pytest.raises(zoo.BadInput, match="num_classes=-1"):
        model.reset_classifier(-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_fusing_keeps_the_outputs(name):
    model, x = shaken(name, torch.float64), inputs(name, which=1, dtype=torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    found = report(model, fused, tuple(inputs(name).shape), timed=False)
    assert found.params[1] < found.params[0]
    assert found.macs[1] < found.macs[0]
    assert not isinstance(fused.head.fc, SeparableConv)
    norms = [m for m in fused.stages.modules() if isinstance(m, nn.LayerNorm)]
    assert norms
    assert not [norm for norm in norms if norm.weight is not None]


def public():
    """A state dict by its public names; every value tells its place."""
    state = json.loads(RECORD.read_text())["state"]
    return {key: torch.full(shape, float(i)) for i, (key, shape, _) in enumerate(state)}


# A checkpoint of nnU-Net, of DataParallel, of both; of a compiled network.
WRAPPINGS = {
    "bare": lambda s: s,
    "nnU-Net": lambda s: {
        "network_weights": s,
        "optimizer_state": {"state": {}, "param_groups": []},
        "current_epoch": 3,
        "trainer_name": "nnUNetTrainerLightMUNet",
    },
    "data parallel": lambda s: {f"module.{key}": value for key, value in s.items()},
    "nnU-Net, data parallel": lambda s: {
        "network_weights": {f"module.{key}": value for key, value in s.items()}
    },
    "nnU-Net, compiled": lambda s: {
        "network_weights": {f"_orig_mod.{key}": value for key, value in s.items()}
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_public_checkpoints_load(wrapping, tmp_path):
    state = public()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "checkpoint_final.pth")
    model = zoo.create_model("lightm_unet_2d")
    assert zoo.load_weights(model, tmp_path / "checkpoint_final.pth") == []
    mixer = model.stages[3].blocks[2].mixer2
    theirs = "down_layers.3.3.conv2"
    pairs = {
        "stem.conv.depthwise.weight": "convInit.0.conv.weight",
        "stages.2.downsample.mixer.proj.bias": "down_layers.2.0.0.proj.bias",
        "decoder.1.reduce.weight": "up_samples.1.0.conv.weight",
        "decoder.2.blocks.0.scale.gamma": "up_layers.2.0.skip_scale",
        "head.norm.weight": "conv_final.0.weight",
        "head.fc.pointwise.bias": "conv_final.2.1.conv.bias",
    }
    own = model.state_dict()
    for ours, public_name in pairs.items():
        assert (own[ours] == state[public_name].flatten()[0]).all(), ours
    assert isinstance(mixer.mamba, Mamba)
    assert (mixer.mamba.scan.x_proj == state[f"{theirs}.mamba.x_proj.weight"][0, 0]).all()
    assert (mixer.mamba.scan.decay.log == state[f"{theirs}.mamba.A_log"][0, 0]).all()
    assert (mixer.scale.gamma == state[f"{theirs}.skip_scale"]).all()


def test_weights_of_another_size_are_named():
    with pytest.raises(zoo.BadWeights, match="stem.conv"):
        zoo.load_weights(zoo.create_model("lightm_unet_2d", init_filters=16), public())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"init_filters": 12}, "init_filters=12: must be a multiple of 8"),
        ({"init_filters": 0}, "init_filters=0"),
        ({"blocks_up": (1, 1)}, "give 3 numbers, one fewer than blocks_down has"),
        ({"blocks_down": ()}, r"blocks_down=\(\)"),
        ({"blocks_down": (1, 0, 1, 1)}, "blocks_down=0"),
        ({"spatial_dims": 4}, "spatial_dims=4"),
        ({"global_pool": "avg"}, "global_pool"),
        ({"img_size": 128}, "img_size"),
    ],
)
def test_settings_that_cannot_work(wrong, named):
    with pytest.raises(zoo.BadInput, match=named) as caught:
        zoo.create_model("lightm_unet_2d", **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOTH)
def test_sizes_that_cannot_work(name):
    model, x = shaken(name), inputs(name)
    with pytest.raises(zoo.BadInput, match=r"a multiple of 8, such as \[16"):
        model(x[..., :12])
    with pytest.raises(zoo.BadInput, match="this model requires"):
        model(x[..., 0])
