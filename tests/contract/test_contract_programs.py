"""Scripting, tracing, compiling and exporting: every program computes what the model does."""

import pytest
import torch
from support import (
    KINDS,
    PYRAMIDS,
    SMALLEST,
    axes,
    difference,
    fresh,
    images,
    inputs,
    quick,
    shaken,
    sizes,
    takes,
    tensors,
    trainable,
)
from torch._dynamo.testing import CompileCounter

import zoo

# How features are taken from the stages is one class; the stages are those of the classifier.
FORMS = [(name, False) for name in SMALLEST] + [(name, True) for name in KINDS]


def kind(name) -> tuple:
    """Return what decides which code of `FeatureExtractor` runs for a model."""
    with torch.device("meta"):
        model = zoo.create_model(name, features_only=True)
    strides = model.feature_info.reduction()
    tokens, linked = model.num_prefix_tokens > 0, bool(model.sources)
    return tokens, linked, strides[0] == strides[-1], takes(name, "dense"), axes(name)


def test_every_kind_of_features_is_a_program():
    assert {kind(name) for name in KINDS} == {kind(name) for name in PYRAMIDS}


def form(name, features_only):
    """Return a model or its features, with few blocks."""
    blocks = 1 if features_only else 2
    return shaken(name, features_only=features_only, **quick(name, blocks))


def equal(have, want) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(have), tensors(want), strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_script")
@pytest.mark.parametrize(("name", "features_only"), FORMS)
def test_script(name, features_only, tmp_path):
    model = form(name, features_only)
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    scripted = torch.jit.load(tmp_path / "model.pt")
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which)
            assert difference(scripted(x), model(x)) < 1e-4


@pytest.mark.parametrize(("name", "features_only"), FORMS)
def test_symbolic_trace(name, features_only):
    model = form(name, features_only)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which)
            assert equal(traced(x), model(x))


@pytest.mark.parametrize("name", SMALLEST)
def test_symbolic_trace_trains(name):
    kwargs = {"drop_path_rate": 0.1} if takes(name, "drop_path_rate") else {}
    traced = torch.fx.symbolic_trace(fresh(name, **kwargs, **quick(name, 1)).train())
    sum(out.square().mean() for out in tensors(traced(inputs(name)))).backward()
    assert all(p.grad is not None for p in trainable(traced).values())


# Sides that differ, all maps of several cells, even on every level: what is odd is padded, and
# would take another graph; sides that are equal would be one symbol.
WIDE = ((2, (128, 256)), (3, (256, 128)))
# With strides of 64, a side of 128 pixels has two cells, for which some sums of sizes are equal.
FAR = {"mobilemamba_t2": ((2, (128, 256)), (3, (128, 384)))}
# One model of each kind of block: the others have the same operators, in other numbers.
ALIKE = ("efficientvmamba", "emo1_1m", "lightm_unet_3d", "mobilenetv2", "simplenet", "spnasnet")
ALIKE += ("attentivenas", "elasticvit", "ofa_", "wavemix_s")
ALIKE += ("asvit", "phresnet", "t2t_vit")  # the attention of pvt_tiny, residual blocks of VoVNet
ALIKE += ("extremec3net", "pvt_v2")  # blocks of SINet, and of EcoFormer
COMPILED = [name for name in SMALLEST if not name.startswith(ALIKE)]
# Exported for any size in tests/deploy/test_families.py. One graph of one size takes a fifth.
OF_ONE_SIZE = ("cvt_2_4_32", "emo_1m", "lightm_unet_2d", "skipblocknet_m", "tiny_vit_5m_224")
OF_ONE_SIZE += ("ecoformer_pvtv2_b0", "sinet_portrait")


def cases(name):
    """Return two batch sizes with an image size each."""
    if "multiple" in zoo.model_info(name)["input"]:
        return zip((2, 5), sizes(name)[::-1], strict=True)
    return FAR.get(name, WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compile_in_one_graph(name):
    torch.compiler.reset()
    model = shaken(name, **quick(name, 1))  # symbolic sizes make every operator expensive
    graphs, any_size = CompileCounter(), name not in OF_ONE_SIZE
    compiled = torch.compile(model, fullgraph=True, dynamic=any_size, backend=graphs)
    with torch.no_grad():
        for batch, size in list(cases(name))[: None if any_size else 1]:
            x = images(batch, size, model.in_chans)
            assert difference(compiled(x), model(x)) < 1e-5
    assert graphs.frame_count <= 2  # windows that fill a map may take another graph
    torch.compiler.reset()


# Files of every family, fused, are tested in tests/deploy/test_families.py; scans are an operator
# of this package here.
SCANS = ("efficientvmamba_tiny", "lightm_unet_2d", "mobilemamba_t2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features_only"), [(name, False) for name in SCANS] + [(name, True) for name in KINDS]
)
def test_export(name, features_only):
    model = shaken(name, features_only=features_only, **quick(name, 1))
    x = inputs(name)
    # Not strict: the test of compiling shows that the Python code makes one graph.
    program = torch.export.export(
        model, (x,), strict=False, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    ).module()
    with torch.no_grad():
        assert difference(program(x), model(x)) < 1e-5
        x = inputs(name, 5)
        assert difference(program(x), model(x)) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_script")
@pytest.mark.parametrize(
    "name", [name for name in SMALLEST if name in zoo.list_models(reparam=True)]
)
def test_fused_models_are_programs_too(name):
    """Exports of fused models: tests/deploy/test_families.py."""
    model, x = zoo.reparameterize(shaken(name, **quick(name, 1))), inputs(name)
    with torch.no_grad():
        want = model(x)
        assert difference(torch.jit.script(model)(x), want) < 1e-4
        assert equal(torch.fx.symbolic_trace(model)(x), want)
