"""Fusing: the same function with nothing left to fold, and the model as it was before."""

import copy

import pytest
import segmentation_models_pytorch as smp
import torch
from support import (
    CLASSIFIERS,
    PYRAMIDS,
    SMALLEST,
    difference,
    fresh,
    images,
    inputs,
    quick,
    shaken,
)
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zoo
import zoo.timm_bridge  # noqa: F401 -- the names "tu-zoo_..." of segmentation_models_pytorch
from zoo import reparam
from zoo.blocks.conv import ConvNorm
from zoo.blocks.folding import is_fixed_batch_norm
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.scale import LayerScale
from zoo.profiling.fusing import FuseReport, report
from zoo.reparam import randomize_parameters

NAMES = [name for name in SMALLEST if name in zoo.list_models(reparam=True)]

FAMILIES = sorted({zoo.model_info(name)["family"] for name in NAMES})


@pytest.mark.parametrize(
    ("name", "features_only"),
    [(name, False) for name in NAMES] + [(name, True) for name in NAMES if name in PYRAMIDS],
)
def test_outputs_stay(name, features_only):
    fewer = quick(name, 1) if features_only else {}  # the blocks are those of the classifier
    model = shaken(name, torch.float64, features_only=features_only, **fewer)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which, dtype=torch.float64)
            assert difference(fused(x), model(x)) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_fusing_in_float32_loses_no_more_than_float32_itself(name):
    model, exact = shaken(name), fresh(name, torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which)
            want = exact(x.double())
            loss = difference(model(x).double(), want)
            assert loss < 5e-3
            assert difference(fused(x).double(), want) < max(1e-5, 2 * loss)


@pytest.mark.parametrize("name", NAMES)
def test_every_door_gives_the_same(name):
    model, x = fresh(name, torch.float64, **quick(name)), inputs(name, dtype=torch.float64)
    fused = zoo.reparameterize(model)
    with torch.no_grad():
        features = model.forward_features(x)
        # An affine norm before the classifier may go into it: the head's outputs count then.
        assert difference(fused.forward_head(fused.forward_features(x)), model(x)) < 1e-9
        assert difference(fused.forward_features(x), features) < 1e-9
        last, maps = fused.forward_intermediates(x)
        want_last, want_maps = model.forward_intermediates(x)
        assert difference([last, *maps], [want_last, *want_maps]) < 1e-9
        if name in CLASSIFIERS:  # what draws maps may end in one layer for two
            pair = (m.forward_head(features, pre_logits=True) for m in (fused, model))
            assert difference(*pair) < 1e-9


def left_in_place(fused: nn.Module) -> dict[str, str]:
    """Return the norms and scales of a fused model that could be foldable, by their paths.

    Each has the name that facts give it in `unfused`: its path, or its attribute and class.
    """
    modules = dict(fused.named_modules())
    found = {}
    for path, module in modules.items():
        parent, _, attribute = path.rpartition(".")
        affine = isinstance(module, nn.LayerNorm) and module.weight is not None
        if is_fixed_batch_norm(module):
            found[path] = path
        elif isinstance(module, LayerScale) or (affine and path.startswith("stages.")):
            found[path] = f"{attribute} of {type(modules[parent]).__name__}"
    return found


def stated_unfused(family: str) -> set[str]:
    name = zoo.list_models(family=family)[0]
    return {entry["part"] for entry in zoo.model_info(name).get("unfused", [])}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_foldable_is_left(name):
    fused = zoo.reparameterize(shaken(name))
    stated = stated_unfused(zoo.model_info(name)["family"])
    for path, part in left_in_place(fused).items():
        assert part in stated, f"fold {path}, or state why not in `unfused` of the facts: {part}"
    assert isinstance(fused.head, ClassifierHead) == (name in CLASSIFIERS)
    assert len(fused.head.classifiers()) == 1, "one classifier"
    last = fused.get_classifier()
    classes = last.out_channels if hasattr(last, "out_channels") else last.out_features
    assert classes == fused.num_classes


@pytest.mark.parametrize("family", FAMILIES)
def test_what_facts_state_as_unfused_is_left(family):
    fused = [zoo.reparameterize(shaken(n)) for n in NAMES if n in zoo.list_models(family=family)]
    assert {part for model in fused for part in left_in_place(model).values()} == stated_unfused(
        family
    )
    for name in zoo.list_models(family=family):
        for entry in zoo.model_info(name).get("unfused", []):
            assert entry.keys() == {"part", "why"}
            assert entry["why"].strip()
            assert not entry["why"].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_the_model_itself_is_left_alone(name):
    model, x = fresh(name, **quick(name)), inputs(name)
    before = copy.deepcopy(model.state_dict())
    addresses = {t.data_ptr() for t in model.state_dict().values()}
    with torch.no_grad():
        want = model(x)
        fused = zoo.reparameterize(model)
        assert not addresses & {t.data_ptr() for t in fused.state_dict().values() if t.numel()}
        for parameter in fused.parameters():
            parameter.zero_()
        assert torch.equal(model(x), want)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], value) for key, value in after.items())
    assert not hasattr(model, "reparameterized")


@pytest.mark.parametrize("name", NAMES)
def test_fusing_twice_changes_nothing(name):
    once = zoo.reparameterize(shaken(name, **quick(name)))
    twice = zoo.reparameterize(once)
    a, b = once.state_dict(), twice.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert str(once) == str(twice)


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_is_refused(name):
    model = fresh(name, **quick(name))
    with pytest.raises(zoo.BadInput, match=r"the model is in training mode; call model\.eval\(\)"):
        zoo.reparameterize(model.train())
    model.eval()
    model.stages[-1].blocks[0].train()  # the first stage may have none
    with pytest.raises(zoo.BadInput, match=r"^stages\.\d+\.blocks\.0 is in training mode"):
        zoo.reparameterize(model)


@pytest.mark.parametrize("name", NAMES)
def test_report_agrees_with_the_counts(name):
    two = tuple(inputs(name).shape)
    size = (1, *two[1:])
    model = shaken(name, **quick(name, 1))
    fused = zoo.reparameterize(model)
    found = report(model, fused, two, timed=False)
    counts = zoo.count(model, size), zoo.count(fused, size)
    assert isinstance(found, FuseReport)
    assert (counts[0].fused, counts[1].fused) == (False, True)
    assert found.params == tuple(c.params for c in counts)
    assert found.macs == tuple(c.macs for c in counts)
    assert found.flops == tuple(c.flops for c in counts)
    assert found.activations == tuple(c.activations for c in counts)
    assert found.nodes == tuple(c.operators for c in counts)
    assert found.flops[1] < found.flops[0]
    assert found.nodes[1] <= found.nodes[0]
    assert found.params[1] < 1.01 * found.params[0]  # a norm's shift may give a layer a bias
    for before, after in (found.layers, found.macs):  # a layer norm stays one without its affine
        assert after <= before
    assert 0 < found.error < 1e-9
    text = str(found)
    assert f"{found.macs[0]:,}" in text
    assert f"{found.params[1]:,}" in text


def test_report_times_both_forms():
    model = randomize_parameters(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    ).eval()
    found = report(model, zoo.reparameterize(model), (2, 3, 64, 64))
    assert found.latency.a.p50 > 0
    assert found.latency.b.p50 > 0
    assert found.nodes[1] == 2 < found.nodes[0]
    assert "fused / unfused latency: " in str(found)


def test_report_refuses_to_compare_nothing():
    class Constant(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x)) * 0 + 1

    model = Constant(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    with pytest.raises(zoo.BadInput, match="do not depend on the image"):
        report(model, zoo.reparameterize(model), (2, 3, 4, 4))


@pytest.mark.parametrize("name", ["efficientformer_l1", "mobilenetv2_035"])
def test_inside_somebody_elses_model(name):
    model = smp.create_model("unet", f"tu-zoo_{name}", encoder_weights=None, classes=2).eval()
    randomize_parameters(model.double())
    fused, x = zoo.reparameterize(model), images(2, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    assert not [m for m in fused.encoder.modules() if is_fixed_batch_norm(m)]


@pytest.mark.parametrize("name", NAMES)
def test_fused_weights_travel_as_a_state_dict(name):
    first = zoo.reparameterize(shaken(name))
    second = zoo.reparameterize(zoo.create_model(name).eval())
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(second(inputs(name)), first(inputs(name)))


# --- plain layers, whoever wrote them ---------------------------------------------------------

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
    "weight norm": nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)
    ),
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


@pytest.mark.parametrize("freeze", [nn.SyncBatchNorm.convert_sync_batchnorm, "timm"])
def test_models_with_other_batch_norms(freeze):
    if freeze == "timm":
        from timm.layers import freeze_batch_norm_2d as freeze
    model = freeze(fresh("efficientformer_l1", torch.float64)).eval()
    fused, x = zoo.reparameterize(model), images(2, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9
    assert not [m for m in fused.modules() if is_fixed_batch_norm(m)]


def test_a_block_whose_norm_has_no_statistics_stays_whole():
    model = zoo.create_model("efficientformer_l1")
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.norm = nn.BatchNorm2d(module.conv.out_channels, track_running_stats=False)
    randomize_parameters(model.double()).eval()
    fused, x = zoo.reparameterize(model), images(2, dtype=torch.float64)
    with torch.no_grad():
        assert difference(fused(x), model(x)) < 1e-9


def test_half_precision_stays_half():
    model = fresh("mobilenetv2_035", torch.bfloat16)
    assert {p.dtype for p in zoo.reparameterize(model).parameters()} == {torch.bfloat16}


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


def test_shaking_makes_what_a_fresh_model_hides_visible():
    model = shaken("efficientformer_l1")
    for module in model.modules():
        if isinstance(module, LayerScale):
            assert 0.3 < module.gamma.abs().mean() < 0.7
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var.std() > 0.1
    assert model.stages[3].blocks[3].attention.bias.table.std() > 0.05
    again, other = (
        randomize_parameters(zoo.create_model("efficientformer_l1"), seed) for seed in (0, 1)
    )
    same = model.state_dict()
    assert all(torch.equal(same[key], value) for key, value in again.state_dict().items())
    assert not torch.equal(same["stem.0.conv.weight"], other.state_dict()["stem.0.conv.weight"])
