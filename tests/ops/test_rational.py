"""Rational functions: formula, gradients, precision, compiled and exported programs."""

import pytest
import torch

import zoo
from zoo.ops import rational


def case(groups=4, rows=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    return draw(3, 5, 12), draw(rows, 6), draw(groups, 4)


@pytest.mark.parametrize("rows", [1, 4])
def test_values_match_the_formula(rows):
    x, a, b = case(rows=rows)
    y = rational(x, a, b)
    for channel in range(12):
        group = channel // 3
        for v, actual in zip(x[..., channel].flatten(), y[..., channel].flatten(), strict=True):
            p = sum(a[group if rows > 1 else 0, i] * v**i for i in range(6))
            q = 1 + sum(b[group, i].abs() * v.abs() ** (i + 1) for i in range(4))
            torch.testing.assert_close(actual, p / q)


def test_the_function_has_no_poles():
    x = torch.linspace(-1e3, 1e3, 4001, dtype=torch.float64)[:, None].expand(-1, 4)
    _, a, b = case()
    assert rational(x.contiguous(), a, -b.abs()).isfinite().all()


@pytest.mark.parametrize("rows", [1, 4])
def test_gradients_of_first_and_second_order(rows):
    x, a, b = (t.requires_grad_() for t in case(rows=rows))
    assert torch.autograd.gradcheck(rational, (x[:1, :2], a, b))
    assert torch.autograd.gradgradcheck(rational, (x[:1, :1], a, b), atol=1e-4)


def test_the_backward_pass_agrees_with_autograd():
    tensors = [t.requires_grad_() for t in case()]
    outer = torch.randn(3, 5, 12, dtype=torch.float64)
    actual = torch.autograd.grad(rational(*tensors), tensors, outer)
    compiled = torch.compile(rational, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(compiled(*tensors), tensors, outer)
    torch.compiler.reset()
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("compiled", [False, True])
def test_coefficients_at_zero_have_a_gradient(compiled):
    x, a, _ = case()
    b = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    function = torch.compile(rational, backend="aot_eager") if compiled else rational
    function(x, a, b).sum().backward()
    torch.compiler.reset()
    p = sum(a[0, i] * x**i for i in range(6))
    expected = torch.stack(
        [-(p * x.abs() ** i).unflatten(-1, (4, 3)).sum((0, 1, 3)) for i in (1, 2)]
    )
    torch.testing.assert_close(b.grad[:, :2].T, expected)


def test_only_the_arguments_are_saved_for_the_backward_pass():
    x, a, b = (t.requires_grad_() for t in case())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.append(t), t.detach())[1], lambda t: t
    ):
        rational(x, a, b)
    assert sum(t.numel() for t in saved) == x.numel() + a.numel() + b.numel()


def test_half_precision_is_computed_in_single_precision():
    x = torch.tensor(
        [[300.0, -300.0]], dtype=torch.float16
    )  # its fifth power exceeds the range of half precision
    a, b = torch.tensor([[0.0, 1, 0, 0, 0, 1e-4]]), torch.tensor([[0.0, 0, 0, 1e-2]])
    y = rational(x, a, b)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), rational(x.double(), a, b), rtol=1e-3, atol=0)


@pytest.mark.usefixtures("quiet_script")
def test_it_can_be_scripted_and_exported():
    x, a, b = case()
    expected = rational(x, a, b)
    torch.testing.assert_close(torch.jit.script(rational)(x, a, b), expected)

    class Module(torch.nn.Module):
        def forward(self, x):
            return rational(x, a, b)

    program = torch.export.export(Module(), (x,))
    torch.testing.assert_close(program.module()(x), expected)


def test_mismatched_coefficients_are_an_error():
    x, a, b = case()
    with pytest.raises(zoo.BadInput, match="12 channels of x are not divisible by 5"):
        rational(x, a, torch.zeros(5, 4))
    with pytest.raises(zoo.BadInput, match="2 rows, but it needs 1 or 4"):
        rational(x, torch.zeros(2, 6), b)
