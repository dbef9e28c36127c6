"""Every form of the selective scan against the definition, and against the others."""

import numpy as np
import pytest
import torch
from scan_cases import LONG, NAMES, SMALL, Case, definition, relative_error

import zoo.ops
from zoo.errors import BadInput
from zoo.ops.scan import operator, plain

HERE = [form for form, runs in zoo.ops.backends().items() if runs and form != "triton"]
FORMS = ["auto", *HERE]
# torch's scan operator compiles itself anew for every size; it is tried on fewer.
QUICK = [form for form in FORMS if form != "scan"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}


def run(inputs, backend, soft=True):
    return zoo.ops.selective_scan(**inputs, delta_softplus=soft, backend=backend)


def leaves(inputs):
    """Return copies that gradients are wanted of."""
    return {
        k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()
    }


def gradients(inputs, backend, soft=True):
    """Return the gradient of every input, for an output weighted at random."""
    inputs = leaves(inputs)
    y = run(inputs, backend, soft)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    given = {k: v for k, v in inputs.items() if v is not None}
    # one step does not depend on the decay rates
    grads = torch.autograd.grad(y, list(given.values()), weights.to(y), materialize_grads=True)
    return dict(zip(given, grads, strict=True))


def test_the_forms_there_are():
    have = zoo.ops.backends()
    assert set(have) == {*plain.FORMS, "tiled", "numba", "triton"}
    written_out = {"sequential", "two_level", "multi_level", "doubling", "any_length"}
    assert set(plain.FORMS) == {*written_out, "scan"}
    assert all(have[form] for form in (*plain.FORMS, "tiled"))
    assert zoo.ops.scan.running("cpu") == ("numba" if have["numba"] else "tiled")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_forward_is_the_definition(case, dtype):
    inputs = case.inputs(dtype)
    want = definition(inputs, case.soft)
    for form in QUICK:
        y = run(inputs, form, case.soft)
        assert y.dtype == dtype
        assert relative_error(y, want) < TOLERANCE[dtype], form


@pytest.mark.parametrize("case", SMALL[2:4], ids=str)
def test_the_scan_operator_of_torch_is_the_definition(case):
    inputs = case.inputs()
    assert relative_error(run(inputs, "scan"), definition(inputs)) < 1e-12


@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_sequences(case):
    inputs = case.inputs()
    want = definition(inputs)
    single = {k: None if v is None else v.float() for k, v in inputs.items()}
    for form in QUICK:
        assert relative_error(run(inputs, form), want) < 1e-12, form
        assert relative_error(run(single, form), want) < 1e-5, form


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_agree_between_the_forms(case):
    inputs = case.inputs()
    want = gradients(inputs, "sequential", case.soft)
    assert set(want) == {k for k, v in inputs.items() if v is not None}
    single = {k: None if v is None else v.float() for k, v in inputs.items()}
    for form in QUICK:
        for dtype, given in ((torch.float64, inputs), (torch.float32, single)):
            have = gradients(given, form, case.soft)
            for name, grad in have.items():
                assert grad.dtype == dtype
                limit = 4 * TOLERANCE[dtype]
                assert relative_error(grad, want[name]) < limit, (form, name)


def test_gradients_over_a_long_sequence():
    inputs = Case(1, 3, 1000, 4, z=True).inputs()
    want = gradients(inputs, "sequential")
    for form in ("auto", "two_level", "doubling"):
        for name, grad in gradients(inputs, form).items():
            assert relative_error(grad, want[name]) < 1e-11, (form, name)


GRADCHECKS = [
    Case(2, 3, 5, 2, z=True),
    Case(1, 4, 6, 1, groups=2, D=False),
    Case(1, 4, 3, 3, groups=4, bias=False, z=True),
    Case(1, 2, 1, 2),
    Case(1, 3, 4, 2, soft=False),
]


@pytest.mark.parametrize("case", GRADCHECKS, ids=str)
@pytest.mark.parametrize("form", QUICK)
def test_gradients_of_every_input_by_differences(form, case):
    inputs = leaves(case.inputs())
    given = [name for name in NAMES if inputs[name] is not None]

    def function(*tensors):
        return run({**inputs, **dict(zip(given, tensors, strict=True))}, form, case.soft)

    assert torch.autograd.gradcheck(function, tuple(inputs[name] for name in given))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
def test_gradients_through_the_scan_operator_of_torch():
    case = Case(1, 4, 6, 2, groups=2, z=True)
    want = gradients(case.inputs(), "sequential")
    for name, grad in gradients(case.inputs(), "scan").items():
        assert relative_error(grad, want[name]) < 1e-12, name


def saturated(dtype):
    """Steps from 0 to 60 that softplus passes on or cuts off, decays from none to all at once."""
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
@pytest.mark.parametrize("form", QUICK)
def test_steps_and_decays_that_saturate(form, dtype):
    inputs = saturated(dtype)
    # torch's softplus is the identity above 20, the definition is not: exp(-20) apart
    limit = max(TOLERANCE[dtype], 3e-9)
    assert relative_error(run(inputs, form), definition(inputs)) < limit
    want = gradients({k: None if v is None else v.double() for k, v in inputs.items()}, "two_level")
    for name, grad in gradients(inputs, form).items():
        assert relative_error(grad, want[name]) < 10 * limit, name


@pytest.mark.parametrize("form", QUICK)
def test_nothing_but_zeros(form):
    inputs = {k: v if v is None else v * 0 for k, v in Case(1, 5, 9, 3).inputs().items()}
    assert torch.equal(run(inputs, form), torch.zeros(1, 5, 9, dtype=torch.float64))
    assert all(grad.isfinite().all() for grad in gradients(inputs, form).values())


@pytest.mark.parametrize("where", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
@pytest.mark.parametrize("form", QUICK)
def test_what_is_no_number_is_not_hidden(form, where):
    inputs = Case(1, 18, 70, 4).inputs(torch.float32)
    inputs[where].view(-1)[3] = float("nan")
    assert run(inputs, form).isnan().any()


@pytest.mark.parametrize("form", QUICK)
def test_input_and_output_weights_of_one_group_may_lack_its_axis(form):
    inputs = Case(2, 5, 11, 3).inputs()
    flat = {**inputs, "B": inputs["B"][:, 0], "C": inputs["C"][:, 0]}
    assert torch.equal(run(flat, form), run(inputs, form))
    assert gradients(flat, form)["B"].shape == (2, 3, 11)


@pytest.mark.parametrize("form", FORMS)
def test_strided_inputs(form):
    case = Case(2, 20, 37, 8, groups=2, z=True)
    inputs = case.inputs()
    strided = {k: v.movedim(0, -1).contiguous().movedim(-1, 0) for k, v in inputs.items()}
    strided["u"] = torch.stack([inputs["u"]] * 2, -1)[..., 0]
    strided["D"] = torch.stack([inputs["D"]] * 2, -1)[..., 0]
    assert sum(not v.is_contiguous() for v in strided.values()) >= 7
    assert relative_error(run(strided, form), run(inputs, form)) < 1e-14
    if form != "scan":
        want = gradients(inputs, form)
        for name, grad in gradients(strided, form).items():
            assert relative_error(grad, want[name]) < 1e-14, name


def test_expanded_inputs_and_gradients():
    inputs = leaves(Case(2, 20, 37, 8).inputs())
    inputs["B"] = inputs["B"][:1].expand(2, -1, -1, -1)
    y = run(inputs, "auto")
    assert relative_error(y, definition(inputs)) < 1e-12
    y.sum().backward()  # the gradient of a sum is expanded
    assert inputs["u"].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_sixteen_bits_are_computed_in_single_precision(form, dtype):
    inputs = Case(1, 20, 50, 8, groups=2, z=True).inputs(dtype)
    wide = {k: v.float() for k, v in inputs.items()}
    assert torch.equal(run(inputs, form), run(wide, form).to(dtype))
    if form != "scan":
        assert all(g.dtype == dtype for g in gradients(inputs, form).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form, dtype):
    inputs = Case(1, 20, 50, 8, groups=2, z=True).inputs(torch.float32)
    want = run(inputs, form)
    with torch.autocast("cpu", dtype):
        have = run(inputs, form)
    assert have.dtype == torch.float32
    assert torch.equal(have, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("form", QUICK)
def test_inputs_thirty_times_too_large(form, dtype):
    inputs = Case(1, 20, 300, 16, z=True).inputs(torch.float64)
    inputs = {k: v if k in ("A", "D") else v * 30 for k, v in inputs.items()}
    given = {k: v.to(dtype) for k, v in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = run(given, form)
    assert not y.isnan().any()
    if dtype != torch.float16:  # whose largest number the true result exceeds
        assert relative_error(y, run(inputs, "two_level")) < 2e-2
    assert not any(g.isnan().any() for g in gradients(given, form).values())


def both(inputs):
    return [run(inputs, "auto"), *gradients(inputs, "auto").values()]


def test_the_number_of_threads_changes_no_bit():
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


def test_a_batch_is_its_sequences_one_by_one():
    inputs = Case(3, 20, 70, 8, groups=2).inputs(torch.float32)
    alone = [
        run(
            {k: v[i : i + 1] if v is not None and v.ndim > 2 else v for k, v in inputs.items()},
            "auto",
        )
        for i in range(3)
    ]
    assert torch.equal(torch.cat(alone), run(inputs, "auto"))


def test_the_state_is_causal():
    inputs = Case(1, 5, 200, 4).inputs()
    before = run(inputs, "auto")
    inputs["u"][..., 130:] += 1
    assert torch.equal(run(inputs, "auto")[..., :130], before[..., :130])


@pytest.mark.skipif(not operator.installed("numba"), reason="Numba is not installed")
def test_the_exponential_of_the_compiled_form():
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
    want = np.exp(x.astype(np.float64))
    normal = want > 1.2e-38
    assert np.abs(y / np.where(normal, want, 1) - 1)[normal].max() < 2e-7
    assert (y[~normal] < 2e-38).all()
    assert y[np.flatnonzero(x == 0)[0]] == 1.0, "a decay of none at all"


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
def test_shapes_that_do_not_fit_name_the_input(name, value):
    inputs = Case(2, 6, 5, 3, groups=2, z=True).inputs(torch.float32)
    with pytest.raises(BadInput, match=rf"^{name} ") as caught:
        run({**inputs, name: value}, "auto")
    assert "\n" not in str(caught.value)


def test_other_values_that_cannot_work():
    inputs = Case(2, 6, 5, 3).inputs(torch.float32)
    with pytest.raises(BadInput, match="backend='cuda'.*sequential.*numba"):
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


def test_more_steps_than_any_length_has_levels_for():
    u, B = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1)
    u, B = u.expand(1, 1, plain.LONGEST + 1), B.expand(1, 1, 1, plain.LONGEST + 1)
    with pytest.raises(BadInput, match="u has 16777217 steps: 'any_length' takes 16777216"):
        plain.any_length(u, u, -torch.ones(1, 1), B, B)


def test_an_empty_batch_gives_an_empty_result():
    inputs = {k: v[:0] if v is not None and v.ndim > 2 else v for k, v in SMALL[2].inputs().items()}
    for form in QUICK:
        assert run(inputs, form).shape == (0, 20, 37)
