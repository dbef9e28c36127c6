"""Convolution with dynamic kernels: formula, gradients, precision, compiled programs."""

import pytest
import torch
import torch.nn.functional as F

from zoo.ops import aggregate


def case(batch=2, channels=16, groups=2, height=5, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)
    kernels = torch.randn(batch, groups, 9, height, width, generator=generator, dtype=dtype)
    return x, kernels


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 3)])
def test_values_match_the_formula(size):
    x, kernels = case(batch=1, channels=6, groups=3, height=size[0], width=size[1])
    y = aggregate(x, kernels)
    for c in range(6):
        for i in range(size[0]):
            for j in range(size[1]):
                expected = torch.zeros((), dtype=torch.float64)
                for p in range(3):
                    for q in range(3):
                        row, column = i + p - 1, j + q - 1
                        if 0 <= row < size[0] and 0 <= column < size[1]:
                            kernel = kernels[0, c % 3, 3 * p + q, i, j]
                            expected += x[0, c, row, column] * kernel
                torch.testing.assert_close(y[0, c, i, j], expected)


def test_values_match_an_implementation_with_unfold():
    x, kernels = case()
    patches = F.unfold(x, 3, padding=1).view(2, 8, 2, 9, 5, 7)
    torch.testing.assert_close(
        aggregate(x, kernels), (patches * kernels[:, None]).sum(3).flatten(1, 2)
    )


def test_equal_kernels_are_a_depthwise_convolution():
    x, _ = case(channels=4, groups=4)
    weight = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    kernels = weight.view(1, 4, 9, 1, 1).expand(2, 4, 9, 5, 7)
    expected = F.conv2d(x, weight, padding=1, groups=4)
    torch.testing.assert_close(aggregate(x, kernels), expected)


def test_gradients():
    x, kernels = (t.requires_grad_() for t in case(1, 4, 2, 3, 2))
    assert torch.autograd.gradcheck(aggregate, (x, kernels))


def test_half_precision_is_summed_in_single_precision():
    x, kernels = case(dtype=torch.float32)
    half = aggregate(x.half(), kernels.half())
    assert half.dtype == torch.float16
    exact = aggregate(x.half().float(), kernels.half().float())
    assert torch.equal(half, exact.half())


@pytest.mark.usefixtures("quiet_script")
def test_it_can_be_scripted_compiled_and_exported():
    x, kernels = case()
    expected = aggregate(x, kernels)
    torch.testing.assert_close(torch.jit.script(aggregate)(x, kernels), expected)
    compiled = torch.compile(aggregate, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x, kernels), expected)
    other = case(height=9, width=4)
    torch.testing.assert_close(compiled(*other), aggregate(*other))
    torch.compiler.reset()

    class Module(torch.nn.Module):
        def forward(self, x, kernels):
            return aggregate(x, kernels)

    program = torch.export.export(Module(), (x, kernels))
    torch.testing.assert_close(program.module()(x, kernels), expected)
