"""Fusing plain layers and models of others: what folds is decided by what the root executes."""

import copy

import pytest
import segmentation_models_pytorch as smp
import torch
from support import difference, images
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zoo
import zoo.timm_bridge  # noqa: F401 -- the names "tu-zoo_..." of segmentation_models_pytorch
from zoo import reparam
from zoo.blocks.conv import ConvNorm
from zoo.blocks.folding import is_fixed_batch_norm
from zoo.reparam import randomize_parameters

PAIRS = {
    "conv": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 4, 7, 7)),
    "depthwise, dilated": (
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.BatchNorm2d(4),
        (2, 4, 9, 9),
    ),
    "reflected": (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
        (2, 4, 5, 5),
    ),
    "not affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 7)),
    "large epsilon": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1), (2, 4, 7, 7)),
    "1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
    "3d": (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (2, 4)),
    "linear, no bias": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (2, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "transposed, grouped": (
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        (2, 4, 7, 7),
    ),
    "synchronised": (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), (2, 4, 7, 7)),
    "frozen": (nn.Conv2d(4, 6, 3), FrozenBatchNorm2d(6), (2, 4, 7, 7)),
}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_in_a_sequence_becomes_one_layer(kind):
    layer, norm, shape = PAIRS[kind]
    model = randomize_parameters(nn.Sequential(layer, norm, nn.ReLU()).double()).eval()
    x = noise(*shape)
    fused = zoo.reparameterize(model, x)
    assert [type(m) for m in fused] == [type(layer), nn.Identity, nn.ReLU]
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


class Reordered(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).relu())


def hooked(layer):
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


ALONE = {
    "no statistics": nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "activation between": nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
    "norm first": nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
    "group norm": nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)),
    "another forward": Reordered(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
    "a hook between": nn.Sequential(hooked(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)),
    "a list": nn.ModuleList([nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]),
}


@pytest.mark.parametrize("kind", ALONE)
def test_what_cannot_be_folded_is_left_alone(kind):
    model = randomize_parameters(copy.deepcopy(ALONE[kind]).double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
    assert str(fused) == str(model)
    if not isinstance(model, nn.ModuleList):
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)


def test_a_weight_that_is_computed_from_others_is_computed_once_and_folded():
    for computed in (
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ):
        model = nn.Sequential(computed(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))
        randomize_parameters(model.double()).eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
        assert [type(layer) for layer in fused] == [nn.Conv2d, nn.Identity]
        assert all(torch.equal(before[k], value) for k, value in model.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x))


def test_a_linear_layer_on_tokens_keeps_the_norm_over_positions():
    model = randomize_parameters(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5)).double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))


def test_shared_layers_and_norms_are_folded_where_they_stand():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    model = nn.Sequential(conv, norm, nn.ReLU(), conv, nn.BatchNorm2d(4), nn.ReLU(), norm)
    randomize_parameters(model.double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


def test_one_module_in_two_places_stays_one():
    block = ConvNorm(4, 4, kernel_size=3, act=nn.ReLU)
    model = randomize_parameters(
        nn.ModuleDict({"a": block, "b": nn.Sequential(block, block)}).double()
    ).eval()
    fused = zoo.reparameterize(model)
    assert fused["a"] is fused["b"][0] is fused["b"][1]
    with torch.no_grad():
        x = noise(2, 4, 5, 5)
        torch.testing.assert_close(fused["b"](x), model["b"](x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("efficientformerv2_s0", ["norm"]),  # of the features, which are for others, too
        ("mobilenetv3_small_050", []),
        ("resnet18", []),
        ("levit_128s", []),  # batch norms after linear layers on tokens, fused by timm's method
        ("repghostnet_050", []),  # branches, fused by timm's method
        ("densenet121", None),  # norms of concatenated maps come first: they stay
    ],
)
def test_models_of_timm_are_fused(name, left):
    model = randomize_parameters(zoo.create_model(f"timm/{name}").double()).eval()
    before = copy.deepcopy(model.state_dict())
    fused, x = zoo.reparameterize(model), images(2, (224, 224), dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    norms = [k for k, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    if left is None:
        assert 0 < len(norms) < sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    else:
        assert norms == left
    assert torch.get_default_dtype() == torch.float32
    assert {p.dtype for p in fused.parameters()} == {torch.float64}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


class Written(nn.Module):
    """Layers that `forward` calls one by one: what folds is decided by how they are called."""

    def __init__(self, flow) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.flow = flow

    def forward(self, x):
        return self.flow(self, x)


FLOWS = {
    "one after the other": (lambda m, x: m.norm(m.conv(x)).relu(), True),
    "with a shortcut": (lambda m, x: x + m.norm(m.conv(x)), True),
    "read twice": (lambda m, x: m.norm(y := m.conv(x)) + y, False),
    "something between": (lambda m, x: m.norm(m.conv(x) * 2), False),
    "called twice": (lambda m, x: m.norm(m.conv(m.conv(x))), False),
    "norm called twice": (lambda m, x: m.norm(m.norm(m.conv(x))), False),
    "weight read besides": (lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(), False),
    "by value": (lambda m, x: m.norm(m.conv(x)) if x.sum() < 1e9 else x, False),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_a_pair_folds_where_nothing_else_reads_it(flow):
    call, folds = FLOWS[flow]
    model = randomize_parameters(Written(call).double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
    assert isinstance(fused.norm, nn.Identity) == folds
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


class ConvThenNorm(nn.Module):
    """A block in the style of mmcv: flags of `forward` switch its parts on and off."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x, norm=True, activate=True):
        x = self.conv(x)
        x = self.norm(x) if norm else x
        return x.relu() if activate else x


class Reader(nn.Module):
    """A parent that uses a block in its own way."""

    def __init__(self, use, block=None):
        super().__init__()
        self.block, self.use = block or ConvThenNorm(), use

    def forward(self, x):
        return self.use(self.block, x)


USES = {
    "as it is": (lambda block, x: block(x), True),
    "its convolution is read as well": (lambda block, x: block(x) + block.conv(x), False),
    "its forward is never called": (
        lambda block, x: (y := block.conv(x), block.norm(y)),
        False,
    ),
    "without its norm": (lambda block, x: block(x, norm=False), False),
    "its convolution is wrapped by a grandparent": (
        lambda block, x: Reader(lambda inner, y: inner(y) * inner.conv(y).sum(), block)(x),
        False,
    ),
}


@pytest.mark.parametrize("use", USES)
def test_a_norm_folds_unless_a_parent_uses_the_block_otherwise(use):
    call, folds = USES[use]
    model = randomize_parameters(Reader(call).double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
    assert isinstance(fused.block.norm, nn.Identity) == folds
    with torch.no_grad():
        found, wanted = (net(x) for net in (fused, model))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    outcome = reparam.report(fused)
    assert outcome.verified
    assert outcome.kept == ({} if folds else {"block.norm": "folding it changes the outputs"})


def test_only_wrong_folds_are_undone():
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x), self[1].conv(self[0](x))

    model = randomize_parameters(Net(*(ConvThenNorm() for _ in range(4))).double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
    assert list(reparam.report(fused).kept) == ["1.norm"]
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_subclass_with_another_forward_does_not_inherit_fused():
    class TwoBranches(ConvNorm):
        def __init__(self):
            super().__init__(4, 4, kernel_size=3)
            self.shortcut = nn.Conv2d(4, 4, 1, bias=False)

        def forward(self, x):
            return self.act(self.norm(self.conv(x) + self.shortcut(x)))

    model = randomize_parameters(TwoBranches().double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fuse", "fused", "reparameterize", "switch_to_deploy"])
def test_a_layer_may_have_the_name_of_a_method_that_fuses(name):
    class Neck(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, name, nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))

        def forward(self, x):
            return getattr(self, name)(x)

    model = randomize_parameters(nn.Sequential(Neck(), nn.ReLU()).double()).eval()
    fused, x = zoo.reparameterize(model), noise(2, 4, 7, 7)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_linear_layer_keeps_a_norm_over_tokens_even_if_the_sizes_are_equal():
    model = randomize_parameters(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()).eval()
    tokens = noise(2, 6, 6)
    for example, reason in ((None, "may return B N C"), (tokens, "whose axis N it normalises")):
        fused = zoo.reparameterize(model, example)
        with torch.no_grad():
            torch.testing.assert_close(fused(tokens), model(tokens), rtol=0, atol=0)
        assert reason in reparam.report(fused).kept["1"]


def test_a_model_that_runs_on_no_random_image_needs_an_example():
    model = randomize_parameters(Reader(lambda block, x: block(x["image"]))).eval()
    assert reparam.report(zoo.reparameterize(model)).kept == {
        "block.norm": "the model does not run on random images; give example_input"
    }
    example = ({"image": torch.randn(2, 4, 7, 7)},)
    assert not reparam.report(zoo.reparameterize(model, example)).kept
    with pytest.raises(zoo.BadInput, match="does not run on example_input: "):
        zoo.reparameterize(model, torch.randn(2, 4, 7, 7))


def test_only_fused_models_have_a_report():
    with pytest.raises(zoo.BadInput, match=r"call that first$"):
        reparam.report(nn.Conv2d(3, 4, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientformer_l1", "mobilenetv2_035"])
def test_inside_somebody_elses_model(name):
    model = smp.create_model("unet", f"tu-zoo_{name}", encoder_weights=None, classes=2).eval()
    randomize_parameters(model.double())
    fused, x = zoo.reparameterize(model), images(2, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    assert not [m for m in fused.encoder.modules() if is_fixed_batch_norm(m)]
