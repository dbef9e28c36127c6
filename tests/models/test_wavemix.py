"""WaveMix: sizes, costs, heads, versions, and what fusing may and may not do."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.blocks.heads import UpsamplingHead
from zoo.models.wavemix import (
    ParallelBlock,
    ShuffledBlock,
    UpsamplingMlp,
    WaveletBlock,
    coefficients,
)
from zoo.ops import haar
from zoo.profiling.fusing import report

# Published names that do not follow from the records: other levels and layers.
OWN_LAYOUTS = ("wavemix_*",)

ALL = zoo.list_models(family="wavemix")
RECORDS = Path(__file__).parents[1] / "reference" / "records"

# Every kind of stem, block and head at a width that is quick, and the size that is tried.
SMALL = {
    "wavemix_144_7_l1_cifar10": dict(dim=16, depth=3),
    "wavemix_192_16_l3": dict(dim=16, depth=4),
    "wavemix_256_16_l4": dict(dim=16, depth=2),
    "wavemix_256_12_l2_places365": dict(dim=16, depth=2),
    "wavemix_v1_256_7": dict(dim=16, depth=2),
    "wavemix_v2_240_12": dict(dim=16, depth=2, last_width=24),
    "wavemix_v3_144_16": dict(dim=16, depth=2),
    "wavemix_seg_192_16_l3_cityscapes": dict(dim=16, depth=2, widths=(32, 24)),
    "wavemix_seg_256_16_l4": dict(dim=16, depth=2, widths=(8, 4)),  # draws more than it has
    "wavemix_sisr_144_4_l1": dict(dim=16, depth=2, widths=(8,)),
}
SIZE = (64, 128)

# In millions, as counted in the public code.
PARAMS = {
    "wavemix_192_16_l3": 27.858, "wavemix_192_16_l1": 12.495, "wavemix_256_16_l3": 49.417,
    "wavemix_256_16_l4": 62.765, "wavemix_144_7_l1_cifar10": 3.043,
    "wavemix_320_8_l1_cifar10": 17.074, "wavemix_256_8_l1_cifar100": 10.954,
    "wavemix_256_10_l1_cifar100": 13.611, "wavemix_256_12_l1_tinyimagenet": 16.295,
    "wavemix_192_16_l3_tinyimagenet": 27.703, "wavemix_256_12_l2_places365": 28.449,
    "wavemix_192_16_l1_galaxy10": 12.303, "wavemix_192_16_l3_galaxy10": 27.667,
    "wavemix_seg_192_16_l3_cityscapes": 28.190, "wavemix_seg_256_16_l4": 63.165,
    "wavemix_sisr_144_4_l1": 1.945, "wavemix_v1_256_7": 57.155, "wavemix_v2_240_12": 33.812,
    "wavemix_v3_144_16": 4.748,
}  # fmt: skip
# What sides must be multiples of: the stem's reduction times 2 to the power of the levels.
MULTIPLES = {name: 2 for name in ALL if "_l1_" in name} | {
    "wavemix_192_16_l3": 32, "wavemix_192_16_l1": 8, "wavemix_256_16_l3": 32,
    "wavemix_256_16_l4": 64, "wavemix_192_16_l3_tinyimagenet": 32,
    "wavemix_256_12_l2_places365": 32, "wavemix_192_16_l1_galaxy10": 8,
    "wavemix_192_16_l3_galaxy10": 32, "wavemix_seg_192_16_l3_cityscapes": 32,
    "wavemix_seg_256_16_l4": 64, "wavemix_sisr_144_4_l1": 2, "wavemix_v1_256_7": 16,
    "wavemix_v2_240_12": 32, "wavemix_v3_144_16": 8,
}  # fmt: skip


def small(name, **kwargs):
    return shaken(name, **SMALL[name], **kwargs)


def shallow(name):
    return shaken(name, **SMALL[name] | {"depth": 1})


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return zoo.create_model(name, **kwargs).eval()


def test_every_variant_is_there():
    assert set(ALL) == PARAMS.keys() == MULTIPLES.keys()


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_those_of_the_public_code(name):
    params = sum(p.numel() for p in on_meta(name).parameters())
    assert round(params / 1e6, 3) == PARAMS[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "giga"),
    [("wavemix_192_16_l3", 224, 15.09), ("wavemix_144_7_l1_cifar10", 32, 0.88)],
)
def test_multiply_adds_are_those_of_the_public_code(name, side, giga):
    cost = zoo.count(zoo.create_model(name), (1, 3, side, side))
    assert round(cost.macs / 1e9, 2) == giga


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_sides_are_multiples(name):
    model, multiple = on_meta(name), MULTIPLES[name]
    for size in ((multiple, 3 * multiple), (2 * multiple, multiple)):
        out = model(torch.empty(2, 3, *size, device="meta"))
        factor = {"segmentation": 1, "super-resolution": 2}.get(zoo.model_info(name)["task"])
        maps = tuple(factor * side for side in size) if factor else ()
        assert out.shape == (2, model.num_classes, *maps)
    for wrong in ((multiple + 1, multiple), (multiple, multiple // 2), (0, multiple)):
        found = rf"\[\d+, \d+\] .* a multiple of {multiple}, such as \["
        with pytest.raises(zoo.BadInput, match=found):
            model(torch.empty(2, 3, *wrong, device="meta"))
    with pytest.raises(zoo.BadInput, match="input with 3 axes"):
        model(torch.empty(3, multiple, multiple, device="meta"))
    assert all(side % multiple == 0 for side in zoo.model_info(name)["input"]["size"][1:])


@pytest.mark.parametrize("features_only", [False, True])
def test_sides_are_checked_in_every_program(features_only, quiet_script):
    model = small("wavemix_192_16_l3", features_only=features_only)
    programs = [model, torch.fx.symbolic_trace(model), torch.compile(model, backend="eager")]
    for program in programs:
        with pytest.raises(zoo.BadInput, match="a multiple of 32"):
            program(images(1, (48, 64)))
    with pytest.raises(torch.jit.Error, match="a multiple of 32"):
        torch.jit.script(model)(images(1, (48, 64)))
    torch.compiler.reset()


def test_channels_of_a_level_are_low_then_details():
    x = images(1, (4, 6), channels=2)
    found, bands = coefficients(haar(x)), haar(x)
    assert torch.equal(found[:, :2], bands[:, :, 0])
    for c, k in itertools.product(range(2), range(3)):
        assert torch.equal(found[:, 2 + 3 * c + k], bands[:, c, 1 + k])


def test_a_block_of_two_levels_is_the_written_out_formula():
    block = WaveletBlock(8, levels=2).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = images(2, (4, 8), channels=8, dtype=torch.float64)
    with torch.no_grad():
        first = haar(block.reduction(x))
        second = haar(first[:, :, 0])
        from_below = block.mlps[0](coefficients(second))
        want = x + block.mlps[1](torch.cat([coefficients(first), from_below], dim=1))
        assert from_below.shape == (2, 4, 2, 4)
        torch.testing.assert_close(block(x), want)


def test_dropout_is_inside_the_blocks_and_none_unless_asked_for():
    for name, layers in (
        ("wavemix_192_16_l3", 3),
        ("wavemix_v1_256_7", 1),
        ("wavemix_v3_144_16", 1),
    ):
        for rate in (0.0, 0.5):
            model = fresh(name, **SMALL[name], drop_rate=rate)
            inside = [
                [m.p for m in block.modules() if isinstance(m, nn.Dropout)]
                for stage in model.stages
                for block in stage.blocks
            ]
            assert inside == [[rate] * layers] * SMALL[name]["depth"]
            assert model.head.drop.p == 0
    model, x = fresh("wavemix_192_16_l3", **SMALL["wavemix_192_16_l3"], drop_rate=0.5), images(2)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        for module in model.modules():
            module.train(isinstance(module, nn.Dropout))
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, [1]), (3, [1] * 3), (7, [1, 2, 2, 2]), (16, [4] * 4)]
)
def test_stages_share_the_blocks_evenly(depth, blocks):
    model = on_meta("wavemix_192_16_l3", dim=16, depth=depth)
    assert [len(stage.blocks) for stage in model.stages] == blocks
    assert len(model.feature_info) == len(blocks)


@pytest.mark.parametrize(
    ("name", "reduction"),
    [("wavemix_192_16_l3", 4), ("wavemix_256_16_l4", 4), ("wavemix_256_12_l2_places365", 8),
     ("wavemix_144_7_l1_cifar10", 1), ("wavemix_seg_192_16_l3_cityscapes", 4)],
)  # fmt: skip
def test_every_level_of_a_pyramid_has_one_size(name, reduction):
    model, x = small(name), images(2, SIZE)
    pyramid = small(name, features_only=True)
    count = min(4, SMALL[name]["depth"])
    assert pyramid.feature_info.reduction() == [reduction] * count
    assert pyramid.feature_info.channels() == [16] * count
    with torch.no_grad():
        maps = pyramid(x)
        y = model.stem(x)
        for have, stage in zip(maps, model.stages, strict=True):
            y = stage(y)
            assert torch.equal(have, y)
            assert y.shape[2:] == tuple(side // reduction for side in SIZE)
        assert torch.equal(y, model.forward_features(x))
        assert torch.equal(small(name, features_only=True, out_indices=(1,))(x)[0], maps[1])


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_its_images_one_by_one(name):
    model, x = small(name, dtype=torch.float64), images(3, SIZE, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
        assert difference(alone, model(x)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_holds_large_images(name, dtype):
    model, x = fresh(name, **SMALL[name]), 30 * images(2, SIZE)
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad(), torch.autocast("cpu", dtype):
            have = model(x)
        assert have.isfinite().all()
    with torch.no_grad():
        assert difference(have.float(), model(x)) < 1
        assert model.to(dtype)(x.to(dtype)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_fusing_keeps_the_outputs_and_costs_less(name):
    model = fresh(name, **SMALL[name])
    fused = zoo.reparameterize(model)
    result = report(model, fused, (2, 3, 64, 64), timed=False)
    assert result.error < 1e-10
    if name == "wavemix_v1_256_7":  # see the facts
        assert result.layers[0] == result.layers[1]
    else:
        assert result.layers[1] < result.layers[0]
        assert result.flops[1] < result.flops[0]
    norms = [m for m in fused.named_modules() if isinstance(m[1], nn.BatchNorm2d)]
    left = {path.split(".")[0] for path, _ in norms}
    wanted = {"stem"} if isinstance(model.stem.layers[-1], nn.BatchNorm2d) else set()
    assert left == (wanted | {"stages"} if name == "wavemix_v1_256_7" else wanted)
    twice = zoo.reparameterize(fused)
    with torch.no_grad():
        assert torch.equal(twice(images(2)), fused(images(2)))


def test_the_norm_of_the_stem_stays():
    """An activation stands before it, and the residual path carries its output to the last map:
    to take it out, every block would have to write divided by its scales, which may be zero."""
    model = small("wavemix_192_16_l3")
    kinds = [nn.Conv2d, nn.Conv2d, nn.Conv2d, nn.GELU, nn.BatchNorm2d]
    assert [type(layer) for layer in zoo.reparameterize(model).stem.layers] == kinds


@pytest.mark.parametrize("name", ["wavemix_seg_192_16_l3_cityscapes", "wavemix_sisr_144_4_l1"])
def test_the_last_upsampling_makes_only_what_is_drawn(name):
    model = small(name)
    fused = zoo.reparameterize(model)
    widths = SMALL[name]["widths"]
    assert len(model.head.up) == len(widths)
    assert len(fused.head.up) == len(widths) - 1
    assert isinstance(fused.get_classifier(), nn.ConvTranspose2d)
    assert fused.get_classifier().out_channels == model.num_classes
    x = images(2, SIZE)
    with torch.no_grad():
        features = fused.forward_features(x)
        assert torch.equal(fused.forward_head(features), fused(x))
        seen = fused.forward_head(features, pre_logits=True)
        assert torch.equal(fused.get_classifier()(seen), fused(x))
    before, after = (zoo.count(m, (1, 3, *SIZE)).macs for m in (model, fused))
    assert after < before


def test_the_last_upsampling_is_left_alone_where_more_is_drawn_than_it_makes():
    head = UpsamplingHead(8, (6, 4), 4)
    assert head.fused().fc.in_channels == 6
    for classes in (5, 20):
        head.reset(classes)
        assert head.fused() is head
    head.reset(0)
    assert head.fused() is head


@pytest.mark.parametrize(
    "name", [n for n in SMALL if zoo.model_info(n)["task"] != "classification"]
)
def test_heads_that_draw_maps(name):
    model, x = fresh(name, **SMALL[name]), images(2, SIZE)
    factor = 2 ** len(SMALL[name]["widths"])
    assert isinstance(model.head, UpsamplingHead)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features == 16
        seen = model.forward_head(features, pre_logits=True)
        assert seen.shape[1] == model.head_hidden_size == SMALL[name]["widths"][-1]
        assert seen.shape[2:] == tuple(factor * side for side in features.shape[2:])
        assert torch.equal(model.get_classifier()(seen), model(x))
        model.reset_classifier(7)
        assert model(x).shape == (2, 7, *seen.shape[2:])
        assert model.num_classes == model.get_classifier().out_channels == 7
        model.reset_classifier(0)
        assert torch.equal(model(x), seen)
    assert zoo.create_model(name, **SMALL[name], num_classes=0).num_classes == 0
    with pytest.raises(zoo.BadInput, match="global_pool='avg'"):
        model.reset_classifier(7, "avg")
    with pytest.raises(zoo.BadInput, match="global_pool"):
        zoo.create_model(name, global_pool="avg")
    with pytest.raises(zoo.BadInput, match="num_classes=-1"):
        model.reset_classifier(-1)


def public(name):
    """A state dict by its public names, zeros throughout."""
    record = json.loads((RECORDS / f"{name}.json").read_text())
    return {key: torch.zeros(shape) for key, shape, _ in record["state"]}


@pytest.mark.parametrize("head", ["expand", "pool", "segment"])
def test_names_of_the_segmentation_head_in_class_file_and_script(head):
    state = public("wavemix_seg_256_16_l4")
    renamed = {key.replace("expand.", f"{head}."): value for key, value in state.items()}
    renamed[f"{head}.0.weight"] += 1
    renamed[f"{head}.2.bias"] += 2
    model = on_meta("wavemix_seg_256_16_l4").to_empty(device="cpu")
    assert zoo.load_weights(model, renamed) == []
    assert (model.head.up[0].weight == 1).all()
    assert (model.head.fc.bias == 2).all()
    assert not model.head.up[1].weight.any()


def test_public_levels_are_counted_from_the_largest_map():
    state = public("wavemix_192_16_l3")
    for level in (1, 2, 3):
        state[f"layers.15.feedforward{level}.3.bias"] += level
    model = on_meta("wavemix_192_16_l3").to_empty(device="cpu")
    zoo.load_weights(model, state)
    mlps = model.stages[3].blocks[3].mlps
    assert all(isinstance(mlp, UpsamplingMlp) for mlp in mlps)
    assert [mlp.fc2.bias.unique().item() for mlp in mlps] == [3, 2, 1]
    assert [mlp.up.out_channels for mlp in mlps] == [96, 96, 192]


def test_public_weights_go_into_pyramids():
    state = public("wavemix_192_16_l3")
    state["layers.7.reduction.bias"] += 5
    model = on_meta("wavemix_192_16_l3", features_only=True, out_indices=(0, 1))
    model = model.to_empty(device="cpu")
    assert zoo.load_weights(model, state) == []
    assert (model.stages[1].blocks[3].reduction.bias == 5).all()


def test_weights_of_another_variant_are_named():
    model = zoo.create_model("wavemix_192_16_l1")
    with pytest.raises(zoo.BadWeights, match=r"missing stages\.0\.blocks\.0\.mlps\.0"):
        zoo.load_weights(model, public("wavemix_192_16_l3"))
    with pytest.raises(zoo.BadWeights, match=r"missing stages\.0\.blocks\.0\.mlps"):
        zoo.load_weights(model, public("wavemix_v3_144_16"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_programs_of_every_version(name, quiet_script):
    model = shallow(name)
    for form in (model, zoo.reparameterize(model)):
        with torch.no_grad():
            x = images(2, SIZE)
            want = form(x)
            assert difference(torch.jit.script(form)(x), want) < 1e-4
            assert torch.equal(torch.fx.symbolic_trace(form)(x), want)


@pytest.mark.slow
def test_compiled_for_any_size_that_works():
    torch.compiler.reset()
    model = fresh("wavemix_192_16_l3", dim=16, depth=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for batch, size in ((2, (64, 96)), (3, (128, 32))):
            assert difference(compiled(images(batch, size)), model(images(batch, size))) < 1e-5
    torch.compiler.reset()


@pytest.mark.slow
# The blocks of the others are exported in tests/deploy/test_families.py.
@pytest.mark.parametrize("name", ["wavemix_v1_256_7", "wavemix_v3_144_16"])
def test_exported_to_onnx(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model = shallow(name)
    found = zoo.export(model, "onnx", tmp_path, input_size=(2, 3, *SIZE))
    assert found.agreement.proven


@pytest.mark.slow
def test_exported_to_onnx_for_any_size_that_works(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    model = zoo.reparameterize(fresh("wavemix_192_16_l3", dim=16, depth=1))
    sides = {i: 32 * torch.export.Dim(n, min=2, max=32) for i, n in ((2, "h"), (3, "w"))}
    file = tmp_path / "model.onnx"
    program = torch.onnx.export(
        model, (images(2, SIZE),), dynamo=True, verbose=False, dynamic_shapes=(sides,)
    )
    program.save(file)
    session = ort.InferenceSession(file)
    for size in (SIZE, (96, 64)):
        x = images(2, size)
        have = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        with torch.no_grad():
            assert difference(have, model(x)) < 1e-3


@pytest.mark.parametrize(
    ("name", "wrong", "named"),
    [
        ("wavemix_192_16_l3", {"dim": 30}, "dim=30: must be a multiple of 4"),
        ("wavemix_192_16_l3", {"dim": "192"}, "dim='192'"),
        ("wavemix_192_16_l3", {"depth": 0}, "depth=0"),
        ("wavemix_192_16_l3", {"levels": 0}, "levels=0"),
        ("wavemix_192_16_l3", {"levels": 1.5}, "levels=1.5"),
        ("wavemix_192_16_l3", {"patch_size": 0}, "patch_size=0"),
        ("wavemix_192_16_l3", {"stride": 2}, "stride=2 has no effect with patch_size=4"),
        (
            "wavemix_192_16_l3",
            {"block": "V1"},
            "unknown block 'V1'. Choices: stacked",
        ),
        ("wavemix_192_16_l3", {"last_width": 0}, "last_width=0"),
        ("wavemix_192_16_l3", {"img_size": 256}, "img_size"),
        ("wavemix_v1_256_7", {"levels": 3}, "dim=256 is not divisible by levels=3"),
        ("wavemix_v3_144_16", {"levels": 2}, "levels=2: blocks of version 3"),
        ("wavemix_sisr_144_4_l1", {"widths": ()}, r"widths=\(\)"),
        ("wavemix_sisr_144_4_l1", {"widths": 72}, "widths=72"),
        ("wavemix_sisr_144_4_l1", {"widths": (0,)}, "widths=0"),
        ("wavemix_sisr_144_4_l1", {"stride": 0}, "stride=0"),
    ],
)
def test_settings_that_cannot_work(name, wrong, named):
    with pytest.raises(zoo.BadInput, match=named) as caught:
        on_meta(name, **wrong)
    assert "\n" not in str(caught.value)


def test_blocks_are_those_of_their_version():
    kinds = {
        "wavemix_v1_256_7": ParallelBlock,
        "wavemix_v2_240_12": WaveletBlock,
        "wavemix_v3_144_16": ShuffledBlock,
    }
    for name, kind in kinds.items():
        assert all(type(b) is kind for stage in small(name).stages for b in stage.blocks)
    kernels = [
        (up.kernel_size, up.stride) for up in small("wavemix_v1_256_7").stages[0].blocks[0].ups
    ]
    assert kernels == [((4, 4), (2, 2)), ((6, 6), (4, 4)), ((10, 10), (8, 8)), ((18, 18), (16, 16))]
    assert small("wavemix_v2_240_12").num_features == 24
