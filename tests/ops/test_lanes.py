"""The vector type for Numba kernels, which relies on internal modules of Numba."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from zoo.ops.lanes import (  # noqa: E402
    LANES,
    exponential,
    load,
    sigmoid,
    softplus,
    store,
    total,
    transpose,
)

DTYPES = [np.float32, np.float64]


@numba.njit(error_model="numpy")
def arithmetic(a, b, out):
    x, y = load(a, 0), load(b, LANES)
    store(out, 0, x * y + x * 2.0)
    return total(x)


@numba.njit(error_model="numpy")
def functions(x, out):
    value = load(x, 0)
    store(out, 0, exponential(value))
    store(out, LANES, softplus(value))
    store(out, 2 * LANES, sigmoid(value))


@numba.njit(error_model="numpy")
def transposed(source, target):
    transpose(source, target, LANES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_store_arithmetic_and_sum(dtype):
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 2 * LANES)).astype(dtype)
    out = np.zeros(LANES + 1, dtype)
    assert arithmetic(a, b, out) == pytest.approx(a[:LANES].sum(), rel=1e-5)
    np.testing.assert_allclose(out[:LANES], a[:LANES] * b[LANES:] + 2 * a[:LANES], rtol=1e-5)
    assert out[LANES] == 0, "store must write exactly sixteen numbers"


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_and_nan(dtype):
    x = np.linspace(-20, 20, LANES).astype(dtype)
    x[3] = np.nan
    out = np.empty((3, LANES), dtype)
    functions(x, out.reshape(-1))
    exact = x.astype(np.float64)
    expected = [np.exp(exact), np.log1p(np.exp(exact)), 1 / (1 + np.exp(-exact))]
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(out, expected, rtol=tolerance)
    assert np.isnan(out[:, 3]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose(dtype):
    source = np.arange(LANES * LANES, dtype=dtype)
    target = np.zeros(LANES * LANES + LANES, dtype)
    transposed(source, target)
    expected = source.reshape(LANES, LANES).T
    np.testing.assert_array_equal(target[LANES:].reshape(LANES, LANES), expected)
    assert (target[:LANES] == 0).all()
