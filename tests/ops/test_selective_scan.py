"""Every backend of the selective scan, compared with the definition and with the others."""

import numpy as np
import pytest
import torch
from scan_cases import LONG, NAMES, SMALL, Case, definition, relative_error

import zoo.ops
from zoo.errors import BadInput
from zoo.ops.scan import operator, plain

AVAILABLE = [name for name, runs in zoo.ops.backends().items() if runs and name != "triton"]
BACKENDS = ["auto", *AVAILABLE]
# The scan operator of PyTorch recompiles for every size, so fewer tests use it.
QUICK = [backend for backend in BACKENDS if backend != "scan"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}


def run(inputs, backend, softplus=True):
    return zoo.ops.selective_scan(**inputs, delta_softplus=softplus, backend=backend)


def leaves(inputs):
    """Return copies that require gradients."""
    return {
        k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()
    }


def gradients(inputs, backend, softplus=True):
    """Return the gradient of every input, for a randomly weighted sum of the output."""
    inputs = leaves(inputs)
    y = run(inputs, backend, softplus)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    given = {k: v for k, v in inputs.items() if v is not None}
    # the output of a single step does not depend on A
    grads = torch.autograd.grad(y, list(given.values()), weights.to(y), materialize_grads=True)
    return dict(zip(given, grads, strict=True))


def test_list_of_backends():
    available = zoo.ops.backends()
    assert set(available) == {*plain.ALGORITHMS, "tiled", "numba", "triton"}
    assert set(plain.ALGORITHMS) == {"sequential", "multi_level", "any_length", "scan"}
    assert all(available[backend] for backend in (*plain.ALGORITHMS, "tiled"))
    assert zoo.ops.scan.auto_backend("cpu") == ("numba" if available["numba"] else "tiled")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_forward_matches_the_definition(case, dtype):
    inputs = case.inputs(dtype)
    expected = definition(inputs, case.softplus)
    for backend in QUICK:
        y = run(inputs, backend, case.softplus)
        assert y.dtype == dtype
        assert relative_error(y, expected) < TOLERANCE[dtype], backend


@pytest.mark.parametrize("case", SMALL[2:4], ids=str)
def test_the_scan_operator_of_pytorch_matches_the_definition(case):
    inputs = case.inputs()
    assert relative_error(run(inputs, "scan"), definition(inputs)) < 1e-12


@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_sequences(case):
    inputs = case.inputs()
    expected = definition(inputs)
    single = {k: None if v is None else v.float() for k, v in inputs.items()}
    for backend in QUICK:
        assert relative_error(run(inputs, backend), expected) < 1e-12, backend
        assert relative_error(run(single, backend), expected) < 1e-5, backend


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_agree_between_backends(case):
    inputs = case.inputs()
    expected = gradients(inputs, "sequential", case.softplus)
    assert set(expected) == {k for k, v in inputs.items() if v is not None}
    single = {k: None if v is None else v.float() for k, v in inputs.items()}
    for backend in QUICK:
        for dtype, given in ((torch.float64, inputs), (torch.float32, single)):
            actual = gradients(given, backend, case.softplus)
            for name, grad in actual.items():
                assert grad.dtype == dtype
                limit = 4 * TOLERANCE[dtype]
                assert relative_error(grad, expected[name]) < limit, (backend, name)


def test_gradients_over_a_long_sequence():
    inputs = Case(1, 3, 1000, 4, z=True).inputs()
    expected = gradients(inputs, "sequential")
    for backend in ("auto", "multi_level", "tiled"):
        for name, grad in gradients(inputs, backend).items():
            assert relative_error(grad, expected[name]) < 1e-11, (backend, name)


GRADCHECKS = [
    Case(2, 3, 5, 2, z=True),
    Case(1, 4, 6, 1, groups=2, D=False),
    Case(1, 4, 3, 3, groups=4, bias=False, z=True),
    Case(1, 2, 1, 2),
    Case(1, 3, 4, 2, softplus=False),
]


@pytest.mark.parametrize("case", GRADCHECKS, ids=str)
@pytest.mark.parametrize("backend", QUICK)
def test_gradients_match_finite_differences(backend, case):
    inputs = leaves(case.inputs())
    given = [name for name in NAMES if inputs[name] is not None]

    def function(*tensors):
        return run({**inputs, **dict(zip(given, tensors, strict=True))}, backend, case.softplus)

    assert torch.autograd.gradcheck(function, tuple(inputs[name] for name in given))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # raised by PyTorch itself
def test_gradients_of_the_scan_operator_of_pytorch():
    case = Case(1, 4, 6, 2, groups=2, z=True)
    expected = gradients(case.inputs(), "sequential")
    for name, grad in gradients(case.inputs(), "scan").items():
        assert relative_error(grad, expected[name]) < 1e-12, name


def saturated(dtype):
    """Return inputs with extreme step sizes and decay rates."""
    case = Case(2, 8, 40, 8, groups=2)
    inputs = case.inputs()
    generator = torch.Generator().manual_seed(1)
    levels = torch.tensor([-60.0, -20.0, 0.0, 19.9, 20.1, 60.0], dtype=torch.float64)
    rates = torch.tensor([0.0, -1e-6, -1e-2, -1.0, -30.0, -1e3], dtype=torch.float64)
    inputs["delta"] = levels[torch.randint(6, (2, 8, 40), generator=generator)]
    inputs["A"] = rates[torch.randint(6, (8, 8), generator=generator)]
    inputs["delta_bias"] = torch.zeros(8, dtype=torch.float64)
    return {k: None if v is None else v.to(dtype) for k, v in inputs.items()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", QUICK)
def test_extreme_steps_and_decays(backend, dtype):
    inputs = saturated(dtype)
    # above 20, PyTorch replaces softplus by the identity, with an error of exp(-20)
    limit = max(TOLERANCE[dtype], 3e-9)
    assert relative_error(run(inputs, backend), definition(inputs)) < limit
    expected = gradients(
        {k: None if v is None else v.double() for k, v in inputs.items()}, "multi_level"
    )
    for name, grad in gradients(inputs, backend).items():
        assert relative_error(grad, expected[name]) < 10 * limit, name


@pytest.mark.parametrize("backend", QUICK)
def test_inputs_of_zeros(backend):
    inputs = {k: v if v is None else v * 0 for k, v in Case(1, 5, 9, 3).inputs().items()}
    assert torch.equal(run(inputs, backend), torch.zeros(1, 5, 9, dtype=torch.float64))
    assert all(grad.isfinite().all() for grad in gradients(inputs, backend).values())


@pytest.mark.parametrize("where", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
@pytest.mark.parametrize("backend", QUICK)
def test_nan_is_preserved(backend, where):
    inputs = Case(1, 18, 70, 4).inputs(torch.float32)
    inputs[where].view(-1)[3] = float("nan")
    assert run(inputs, backend).isnan().any()


@pytest.mark.parametrize("backend", QUICK)
def test_the_group_axis_of_the_weights_is_optional(backend):
    inputs = Case(2, 5, 11, 3).inputs()
    flat = {**inputs, "B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(run(flat, backend), run(inputs, backend))
    assert gradients(flat, backend)["B"].shape == (2, 3, 11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend):
    case = Case(2, 20, 37, 8, groups=2, z=True)
    inputs = case.inputs()
    strided = {k: v.movedim(0, -1).contiguous().movedim(-1, 0) for k, v in inputs.items()}
    strided["u"] = torch.stack([inputs["u"]] * 2, -1)[..., 0]
    strided["D"] = torch.stack([inputs["D"]] * 2, -1)[..., 0]
    assert sum(not v.is_contiguous() for v in strided.values()) >= 7
    assert relative_error(run(strided, backend), run(inputs, backend)) < 1e-14
    if backend != "scan":
        expected = gradients(inputs, backend)
        for name, grad in gradients(strided, backend).items():
            assert relative_error(grad, expected[name]) < 1e-14, name


def test_expanded_inputs_and_gradients():
    inputs = leaves(Case(2, 20, 37, 8).inputs())
    inputs["B"] = inputs["B"][:1].expand(2, -1, -1, -1)
    y = run(inputs, "auto")
    assert relative_error(y, definition(inputs)) < 1e-12
    y.sum().backward()  # the gradient of a sum is expanded
    assert inputs["u"].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_16_bit_inputs_are_computed_in_single_precision(backend, dtype):
    inputs = Case(1, 20, 50, 8, groups=2, z=True).inputs(dtype)
    wide = {k: v.float() for k, v in inputs.items()}
    assert torch.equal(run(inputs, backend), run(wide, backend).to(dtype))
    if backend != "scan":
        assert all(g.dtype == dtype for g in gradients(inputs, backend).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_change_the_result(backend, dtype):
    inputs = Case(1, 20, 50, 8, groups=2, z=True).inputs(torch.float32)
    expected = run(inputs, backend)
    with torch.autocast("cpu", dtype):
        actual = run(inputs, backend)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", QUICK)
def test_large_inputs_give_no_nan(backend, dtype):
    inputs = Case(1, 20, 300, 16, z=True).inputs(torch.float64)
    inputs = {k: v if k in ("A", "D") else v * 30 for k, v in inputs.items()}
    given = {k: v.to(dtype) for k, v in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = run(given, backend)
    assert not y.isnan().any()
    if dtype != torch.float16:  # the true result exceeds its range
        assert relative_error(y, run(inputs, "multi_level")) < 2e-2
    assert not any(g.isnan().any() for g in gradients(given, backend).values())


def both(inputs):
    return [run(inputs, "auto"), *gradients(inputs, "auto").values()]


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = Case(2, 50, 100, 8, groups=2).inputs(torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(both(inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_sequences_of_a_batch_are_independent():
    inputs = Case(3, 20, 70, 8, groups=2).inputs(torch.float32)
    separate = [
        run(
            {k: v[i : i + 1] if v is not None and v.ndim > 2 else v for k, v in inputs.items()},
            "auto",
        )
        for i in range(3)
    ]
    assert torch.equal(torch.cat(separate), run(inputs, "auto"))


def test_the_scan_is_causal():
    inputs = Case(1, 5, 200, 4).inputs()
    before = run(inputs, "auto")
    inputs["u"][..., 130:] += 1
    assert torch.equal(run(inputs, "auto")[..., :130], before[..., :130])


@pytest.mark.skipif(not operator.installed("numba"), reason="Numba is not installed")
def test_the_exponential_of_the_numba_backend():
    import numba

    from zoo.ops.lanes import exponential

    @numba.njit(error_model="numpy")
    def each(x, y):
        for i in range(x.size):
            y[i] = exponential(x[i])

    x = np.concatenate([np.linspace(-87, 0, 200_001), [-1e30, -88.0, -1e-30, 0.0, 0.5, 80.0]])
    x = x.astype(np.float32)
    y = np.empty_like(x)
    each(x, y)
    expected = np.exp(x.astype(np.float64))
    normal = expected > 1.2e-38
    assert np.abs(y / np.where(normal, expected, 1) - 1)[normal].max() < 2e-7
    assert (y[~normal] < 2e-38).all()
    assert y[np.flatnonzero(x == 0)[0]] == 1.0, "exp(0) must be exactly 1"


WRONG = {
    "u": [torch.zeros(2, 6), torch.zeros(2, 6, 5, 1), torch.zeros(2, 6, 5, dtype=torch.int64)],
    "delta": [torch.zeros(2, 6, 4), torch.zeros(6, 5)],
    "A": [torch.zeros(5, 3), torch.zeros(6), torch.zeros(6, 0)],
    "B": [
        torch.zeros(2, 2, 4, 5),
        torch.zeros(2, 4, 3, 5),
        torch.zeros(3, 5),
        torch.zeros(1, 3, 5),
    ],
    "C": [torch.zeros(2, 1, 3, 5), torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 5, 1)],
    "D": [torch.zeros(5), torch.zeros(6, 1)],
    "z": [torch.zeros(2, 6, 4), torch.zeros(2, 6)],
    "delta_bias": [torch.zeros(1), torch.zeros(6, 1)],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, all_ in WRONG.items() for v in all_])
def test_a_wrong_shape_is_an_error_that_names_the_input(name, value):
    inputs = Case(2, 6, 5, 3, groups=2, z=True).inputs(torch.float32)
    with pytest.raises(BadInput, match=rf"^{name} ") as caught:
        run({**inputs, name: value}, "auto")
    assert "\n" not in str(caught.value)


def test_other_invalid_arguments():
    inputs = Case(2, 6, 5, 3).inputs(torch.float32)
    with pytest.raises(BadInput, match=r"unknown backend 'cuda'\. Choices: .*sequential.*numba"):
        run(inputs, "cuda")
    with pytest.raises(BadInput, match="u has no steps"):
        run(
            {k: v[..., :0] if k in ["u", "delta", "B", "C"] else v for k, v in inputs.items()},
            "auto",
        )
    with pytest.raises(BadInput, match="B.*4 groups"):
        run({k: torch.zeros(2, 4, 3, 5) if k in "BC" else v for k, v in inputs.items()}, "auto")
    if operator.installed("triton"):
        with pytest.raises(BadInput, match="backend='triton'.*cpu"):
            run(inputs, "triton")


def test_any_length_refuses_too_many_steps():
    u, B = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1)
    u, B = u.expand(1, 1, plain.MAX_LENGTH + 1), B.expand(1, 1, 1, plain.MAX_LENGTH + 1)
    with pytest.raises(
        BadInput, match="u has 16777217 steps, but 'any_length' supports at most 16777216"
    ):
        plain.any_length(u, u, -torch.ones(1, 1), B, B)


def test_an_empty_batch_gives_an_empty_result():
    inputs = {k: v[:0] if v is not None and v.ndim > 2 else v for k, v in SMALL[2].inputs().items()}
    for backend in QUICK:
        assert run(inputs, backend).shape == (0, 20, 37)
