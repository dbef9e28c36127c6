"""`reparameterize` and hooks, wrappers, methods of single objects, and unusual inputs."""

import types

import pytest
import torch
from torch import nn

import zoo
from zoo.blocks.conv import ConvNorm
from zoo.errors import BadInput
from zoo.reparam import randomize_parameters, reparameterize, report


def conv_and_norm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def norms(model) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def assert_equal_with(model, kept):
    """The fused model is equal, and `kept` batch norms are left."""
    model = randomize_parameters(model).eval()
    fused = reparameterize(model)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fused(image), model(image), rtol=1e-4, atol=1e-4)
    assert norms(fused) == kept
    assert len(report(fused).kept) == kept


def double(module, inputs, output):
    return output * 2


def test_a_hook_on_a_layer_keeps_the_norm_after_it():
    plain = conv_and_norm()
    plain[0].register_forward_hook(double)
    assert_equal_with(plain, 1)
    block = ConvNorm(3, 8, kernel_size=3)
    block.conv.register_forward_hook(double)
    assert_equal_with(nn.Sequential(block), 1)
    before = conv_and_norm()
    before[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    assert_equal_with(before, 1)


def test_a_forward_that_belongs_to_one_object():
    block = ConvNorm(3, 8, kernel_size=3)
    block.forward = types.MethodType(lambda self, x: self.conv(x), block)
    assert_equal_with(nn.Sequential(block), 1)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv_and_norm()

    def forward(self, x):
        return self.norm(input=self.conv(x))


def test_a_norm_that_is_called_by_keyword_folds():
    assert_equal_with(ByKeyword(), 0)


class Foreign(nn.Module):
    """A module of another package, which makes `reparameterize` compare both forms."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def test_a_model_that_starts_with_a_transposed_convolution_is_compared():
    model = Foreign(nn.ConvTranspose2d(3, 8, 2, 2), nn.BatchNorm2d(8))
    assert_equal_with(model, 0)
    assert report(reparameterize(model)).verified


def test_why_a_linear_layer_on_tokens_keeps_its_norm():
    model = Foreign(nn.Unflatten(1, (8, 4)), nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    fused = reparameterize(model, torch.randn(2, 32))
    assert report(fused).kept == {
        "layers.2": "the linear layer before it returns B N C, whose axis N it normalises"
    }


def test_compiled_models_fold():
    model = torch.compile(conv_and_norm().eval(), backend="eager")
    assert norms(reparameterize(model)) == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "model=NoneType is not an nn.Module"),
        (abs, "model=builtin_function_or_method is not an nn.Module"),
        (nn.Sequential(nn.LazyConv2d(8, 3)), "0 has parameters without a shape; run"),
    ],
)
def test_what_is_not_a_model(model, message):
    with pytest.raises(BadInput, match=message):
        zoo.reparameterize(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_models_are_refused():
    script = torch.jit.script(conv_and_norm().eval())
    with pytest.raises(BadInput, match="the model is a TorchScript module"):
        reparameterize(script)
    with pytest.raises(BadInput, match="0 is a TorchScript module"):
        reparameterize(nn.Sequential(script).eval())


@pytest.mark.parametrize("example", ["text", {"x": 1}, (1, 2)])
def test_an_example_input_without_a_tensor(example):
    with pytest.raises(BadInput, match="example_input=.* is neither a tensor nor a tuple"):
        reparameterize(conv_and_norm().eval(), example_input=example)
