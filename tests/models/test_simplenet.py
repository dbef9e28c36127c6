"""SimpleNet: its chain written out, numbers of layers old and new, sizes that are too small."""

import pytest
import torch
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.blocks.conv import ConvNorm
from zoo.models.simplenet import CHAINS, POINTWISE, STRIDE_MODES, SimpleNet

# Published names that do not follow from the records: an extra pool.
OWN_LAYOUTS = ("simplenet_cifar_5m_extra_pool",)

# Where the public code counts its convolutions: four modules a layer (convolution, norm,
# activation, dropout), three where the dropout is left out, two a pooling.
NUMBERS = {
    "simplenetv1_small_m1_05": (0, 4, 8, 12, 16, 20, 26, 30, 34, 38, 44, 48, 52),
    "simplenet_cifar_310k": (0, 4, 8, 12, 17, 21, 25, 30, 34, 39, 43, 47, 52),
    "simplenet_cifar_5m_extra_pool": (0, 4, 8, 12, 17, 21, 25, 30, 34, 39, 45, 49, 54),
}
# Files of 2018 have no dropout but after poolings; from the training log of the authors.
OLD = (0, 3, 6, 9, 14, 17, 20, 25, 28, 33, 38, 41, 46)


def units(model):
    return [module for module in model.modules() if isinstance(module, ConvNorm)]


def published(model, numbers):
    """The state of `model` under public names."""
    state = {}
    for number, unit in zip(numbers, units(model), strict=True):
        state |= {f"features.{number}.{k}": v for k, v in unit.conv.state_dict().items()}
        state |= {f"features.{number + 1}.{k}": v for k, v in unit.norm.state_dict().items()}
    return state | {f"classifier.{k}": v for k, v in model.head.fc.state_dict().items()}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_are_found_whatever_their_numbers(name, wrapped):
    model, x = shaken(name), images(2)
    state = published(model, NUMBERS[name])
    if wrapped:
        state = {"epoch": 540, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    again = zoo.create_model(name).eval()
    assert zoo.load_weights(again, state) == []
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_files_of_2018_have_other_numbers():
    name = "simplenet_cifar_5m_extra_pool"
    model, x = shaken(name), images(2)
    state = published(model, OLD)
    shuffled = dict(sorted(state.items(), key=lambda item: item[0]))  # 14 before 3
    again = zoo.create_model(name).eval()
    zoo.load_weights(again, {"state_dict": {f"module.{k}": v for k, v in shuffled.items()}})
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_the_weights_of_the_extra_pool_fit_its_twin_but_compute_something_else():
    state = published(shaken("simplenet_cifar_5m_extra_pool"), OLD)
    twin = zoo.create_model("simplenet_cifar_5m").eval()
    zoo.load_weights(twin, state)
    x = images(2)
    with torch.no_grad():
        assert difference(twin(x), shaken("simplenet_cifar_5m_extra_pool")(x)) > 0.1


def test_a_layer_too_few_or_too_many_is_named():
    model = fresh("simplenet_cifar_310k")
    state = published(model, NUMBERS["simplenet_cifar_310k"])
    short = {
        key: v for key, v in state.items() if not key.startswith(("features.52", "features.53"))
    }
    with pytest.raises(zoo.BadWeights, match=r"missing stages\.4"):
        zoo.load_weights(model, short)
    extra = state | {"features.60.weight": torch.zeros(1, 1, 3, 3)}
    with pytest.raises(zoo.BadWeights, match=r"unexpected features\.60\.weight"):
        zoo.load_weights(model, extra)


def by_hand(chain, mode, layers, fc, x):
    """The chain as the paper's table gives it, from the convolutions and norms in order."""
    position = 0
    for layer in CHAINS[chain]:
        if layer == "P":
            x = nn.functional.max_pool2d(x, 2)
            continue
        unit = layers[position]
        side = 1 if position in POINTWISE else 3
        assert unit.conv.kernel_size == (side, side)
        stride = 2 if position in STRIDE_MODES[mode] else 1
        x = nn.functional.conv2d(
            x, unit.conv.weight, unit.conv.bias, stride, padding=(side - 1) // 2
        )
        x = unit.norm(x).relu()
        position += 1
    return fc(x.flatten(2).max(dim=2).values)


@pytest.mark.parametrize(
    ("chain", "mode"), [("5m", 1), ("5m", 2), ("5m", 3), ("5m", 4), ("cifar_460k", 0)]
)
@pytest.mark.parametrize("size", [(64, 64), (83, 101)])
def test_the_chain_is_the_published_one(chain, mode, size):
    model = SimpleNet(chain=chain, stride_mode=mode, width=0.25, num_classes=5).eval()
    zoo.reparam.randomize_parameters(model.double())
    x = images(2, size, dtype=torch.float64)
    with torch.no_grad():
        want = by_hand(chain, mode, units(model), model.head.fc, x)
        torch.testing.assert_close(model(x), want)


def test_widths_and_levels():
    halves = [u.conv.out_channels for u in units(shaken("simplenetv1_small_m1_05"))]
    assert halves == [32, *[64] * 5, *[128] * 3, 256, 1024, 128, 128]
    levels = {
        "simplenetv1_5m_m1": ([2, 4, 8, 16, 32], [64, 128, 128, 512, 256]),
        "simplenetv1_5m_m2": ([2, 4, 8, 16, 32], [64, 128, 128, 512, 256]),
        "simplenet_cifar_310k": ([1, 2, 4, 8, 16], [32, 64, 64, 64, 64]),
        "simplenet_cifar_5m_extra_pool": ([1, 2, 4, 8, 16, 32], [128, 256, 256, 512, 256, 256]),
    }
    for name, (strides, channels) in levels.items():
        with torch.device("meta"):
            model = zoo.create_model(name, features_only=True).eval()
            maps = model(torch.empty(1, 3, 64, 96))
        assert model.feature_info.reduction() == strides
        assert model.feature_info.channels() == channels
        assert [tuple(m.shape[1:]) for m in maps] == [
            (c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
        ]
    for mode in (1, 2):
        with torch.device("meta"):
            model = zoo.create_model(f"simplenetv1_5m_m{mode}", features_only=True).eval()
            sides = [m.shape[2] for m in model(torch.empty(1, 3, 224, 224))]
        assert sides == [112, 56, 28, 14, 7]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("simplenetv1_small_m1_05", 25),
        ("simplenet_cifar_310k", 16),
        ("simplenet_cifar_5m_extra_pool", 32),
    ],
)
def test_the_smallest_image(name, least):
    model = shaken(name)
    assert zoo.model_info(name)["capabilities"]["smallest"] == least
    with torch.no_grad():
        assert model.forward_features(images(2, (least, least))).shape[2:] == (1, 1)
        with pytest.raises(zoo.BadInput, match=f"at least {least} x {least}"):
            model(images(2, (least, least - 1)))


@pytest.mark.usefixtures("quiet_script")
def test_a_stage_without_layers_of_its_own_is_a_program_too():
    model = shaken("simplenetv1_small_m1_05")
    assert len(model.stages[0].blocks) == 0, "the first stride has the stem alone"
    x = images(2)
    with torch.no_grad():
        want = model(x)
        assert difference(torch.jit.script(model)(x), want) < 1e-4
        assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
        assert difference(torch.export.export(model, (x,)).module()(x), want) < 1e-5
    model = fresh("simplenetv1_small_m1_05").train()
    model.set_grad_checkpointing(True)
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_fused_it_is_convolutions_activations_and_pools():
    fused = zoo.reparameterize(shaken("simplenetv1_small_m1_05"))
    kinds = {type(m) for m in fused.modules() if not list(m.children())}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Identity, nn.Dropout, nn.Linear} | (
        {nn.Sequential}  # the stage without layers
    )


def test_published_settings():
    model = zoo.create_model("simplenetv1_small_m1_05")
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.05}
    assert model.head.pool == "max"
    bound = (6 * 2 / (9 * (64 + 64))) ** 0.5  # Xavier's, with the gain of a ReLU
    assert units(model)[2].conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    with pytest.raises(zoo.BadInput, match="unknown stride_mode 7"):
        zoo.create_model("simplenetv1_5m_m1", stride_mode=7)
    with pytest.raises(zoo.BadInput, match="drop_path_rate"):
        zoo.create_model("simplenetv1_5m_m1", drop_path_rate=0.1)
