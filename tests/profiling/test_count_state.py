"""Counting leaves models unchanged, undoes `torch.compile`, and credits shared layers."""

import io

import pytest
import timm
import torch
from torch import nn

import zoo
from zoo.counting.count import count
from zoo.counting.rules import FlopCountAnalysis


def hooks(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]


def small_model():
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers[:2], nn.Sequential(*layers[2:])).eval()


@pytest.mark.parametrize("size", [(1, 1, 64, 64), (1, 3, 2, 2)])
def test_a_refused_count_leaves_no_hooks(size):
    model = small_model()
    model[1].register_forward_hook(lambda *_: None)
    before = hooks(model)
    with pytest.raises(zoo.BadInput, match="the model cannot run on"):
        count(model, size)
    assert hooks(model) == before


def test_a_model_can_be_fused_and_saved_after_a_refused_count():
    model = timm.create_model("resnet18").eval()
    with pytest.raises(zoo.BadInput):
        count(model, (1, 1, 64, 64))
    fused = zoo.reparameterize(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.save(model, io.BytesIO())


def test_fvcore_leaves_its_hooks_after_an_error():
    """Once this fails, `_hooks_restored` is no longer needed."""
    model = small_model()
    with pytest.raises(RuntimeError):
        FlopCountAnalysis(model, torch.zeros(1, 1, 8, 8)).total()
    assert hooks(model)


@pytest.mark.parametrize("part", ["model", "submodule", "in place"])
def test_a_compiled_model_counts_as_the_model_that_was_compiled(part):
    expected = count(small_model(), (1, 3, 16, 16))
    model = small_model()
    if part == "model":
        model = torch.compile(model, backend="eager")
    elif part == "submodule":
        model[2] = torch.compile(model[2], backend="eager")
    else:
        model.compile(backend="eager")
        model[2].compile(backend="eager")
    names = [(name, type(module)) for name, module in model.named_modules()]
    compiled = [module._compiled_call_impl for module in model.modules()]
    assert count(model, (1, 3, 16, 16)) == expected
    assert [(name, type(module)) for name, module in model.named_modules()] == names
    assert [module._compiled_call_impl for module in model.modules()] == compiled
    with pytest.raises(zoo.BadInput):
        count(model, (1, 1, 16, 16))
    assert [module._compiled_call_impl for module in model.modules()] == compiled


@pytest.mark.usefixtures("quiet_script")
def test_a_torchscript_module_is_refused():
    scripted = torch.jit.script(small_model())
    for model in (scripted, nn.Sequential(scripted)):
        with pytest.raises(zoo.BadInput, match="TorchScript module; count the Python model"):
            count(model, (1, 3, 16, 16))


class Caller(nn.Module):
    """Calls a layer that it may share with other modules."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


class SharedLayer(nn.Module):
    """Calls one layer directly and through a module in a list."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 10)
        self.blocks = nn.ModuleList([Caller(self.layer)])

    def forward(self, x):
        return self.blocks[0](self.layer(x))


def test_a_shared_layer_counts_in_every_module_that_calls_it():
    found = count(SharedLayer(), (20, 10))
    macs = {name: row["macs"] for name, row in found.by_module().items()}
    assert macs == {"": 4000, "layer": 4000, "blocks": 2000, "blocks.0": 2000}
    assert found.own_macs() == {"": 0, "layer": 4000, "blocks": 0, "blocks.0": 0}


def test_operators_belong_to_the_innermost_module():
    found = count(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2))), (1, 4))
    assert found.own_macs() == {"": 0, "0": 16, "1": 0, "1.0": 8}
