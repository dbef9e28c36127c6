"""What turns a model into a program: scripting, tracing, compiling, exporting; outputs equal."""

import pytest
import torch
from support import (
    PYRAMIDS,
    SMALLEST,
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

FORMS = [(name, False) for name in SMALLEST] + [(name, True) for name in PYRAMIDS]


def form(name, features_only):
    """Return a model, or its maps: of fewer blocks, as those are in the model already."""
    blocks = 1 if features_only else 2
    return shaken(name, features_only=features_only, **quick(name, blocks))


def able(name, way) -> bool:
    return zoo.model_info(name)["capabilities"].get(way, True)


def equal(have, want) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(have), tensors(want), strict=True))


@pytest.mark.usefixtures("quiet_script")
@pytest.mark.parametrize(("name", "features_only"), FORMS)
def test_script(name, features_only, tmp_path):
    model = form(name, features_only)
    if not able(name, "script"):
        with pytest.raises(Exception, match="."):
            torch.jit.script(model)
        return
    scripted = torch.jit.script(model)
    torch.jit.save(scripted, tmp_path / "model.pt")
    again = torch.jit.load(tmp_path / "model.pt")
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which)
            want = model(x)
            assert difference(scripted(x), want) < 1e-4
            assert difference(again(x), want) < 1e-4


@pytest.mark.parametrize(("name", "features_only"), FORMS)
def test_symbolic_trace(name, features_only):
    model = form(name, features_only)
    if not able(name, "trace"):
        with pytest.raises(Exception, match="."):
            torch.fx.symbolic_trace(model)
        return
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for which in (0, 1):
            x = inputs(name, which=which)
            assert equal(traced(x), model(x))


@pytest.mark.parametrize("name", [name for name in SMALLEST if able(name, "trace")])
def test_symbolic_trace_trains(name):
    kwargs = {"drop_path_rate": 0.1} if takes(name, "drop_path_rate") else {}
    traced = torch.fx.symbolic_trace(fresh(name, **kwargs, **quick(name)).train())
    sum(out.square().mean() for out in tensors(traced(inputs(name)))).backward()
    assert all(p.grad is not None for p in trainable(traced).values())


@pytest.mark.parametrize("name", SMALLEST)
def test_compile_in_one_graph_for_any_size(name):
    torch.compiler.reset()
    model = shaken(name, **quick(name, blocks=1))  # sizes as symbols make every operator dear
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    with torch.no_grad():
        free = "multiple" not in zoo.model_info(name)["input"]
        square, other = ((64, 64), (96, 128)) if free else sizes(name)
        for batch, size in ((2, other), (5, square)):  # sides that are equal would be one symbol
            x = images(batch, size, model.in_chans)
            assert difference(compiled(x), model(x)) < 1e-5
    # Maps of a single cell, and windows that fill a map, may be another graph.
    assert graphs.frame_count <= 2
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "features_only"), FORMS)
def test_export(name, features_only):
    model = form(name, features_only)
    x = inputs(name)
    # Not strict: that Python's code makes one graph is what the test of compiling holds.
    program = torch.export.export(
        model, (x,), strict=False, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    with torch.no_grad():
        assert difference(program.module()(x), model(x)) < 1e-5
        x = inputs(name, 5)
        assert difference(program.module()(x), model(x)) < 1e-5


@pytest.mark.usefixtures("quiet_script")
@pytest.mark.parametrize(
    "name", [name for name in SMALLEST if name in zoo.list_models(reparam=True)]
)
def test_fused_models_are_programs_too(name):
    model, x = zoo.reparameterize(shaken(name, **quick(name))), inputs(name)
    with torch.no_grad():
        want = model(x)
        if able(name, "script"):
            assert difference(torch.jit.script(model)(x), want) < 1e-4
        if able(name, "trace"):
            assert equal(torch.fx.symbolic_trace(model)(x), want)
        assert difference(torch.export.export(model, (x,), strict=False).module()(x), want) < 1e-5
