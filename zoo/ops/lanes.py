"""Explicit vectors of sixteen floats for kernels that Numba compiles.

Numba relies on LLVM to vectorise loops, which fails if arrays may overlap or if the loop contains a
call. `Lanes` is a vector type with sixteen floats, arithmetic, exponential, softplus and sigmoid.
LLVM maps it to the vector registers of the processor. `load` and `store` take C-contiguous arrays
and an offset from the first element.

Products and sums may be fused, but are never reordered. NaN is preserved, so that a diverged model
is noticed.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import register_default
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, overload

LANES = 16
_FLAGS = ("contract", "nsz")


class Lanes(types.Type):
    """Numba type of a vector of sixteen floats with the type `dtype`."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")


@register_default(Lanes)
class _LanesModel(PrimitiveModel):
    """Represents `Lanes` by an LLVM vector."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(kind))


def _vector(kind: Lanes) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType(), LANES)


def _spread(builder: Any, kind: ir.VectorType, number: Any) -> Any:
    """Return a vector whose sixteen elements are all `number`."""
    first = builder.insert_element(
        ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
    )
    same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, first, same)


def _constant(kind: ir.VectorType, number: float) -> Any:
    return ir.Constant(kind, [number] * LANES)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Return the address of an element of a C-contiguous array as a vector pointer."""
    data = context.make_array(kind)(context, builder, array).data
    address = builder.gep(data, [offset], inbounds=True)
    return builder.bitcast(address, ir.PointerType(_vector(Lanes(kind.dtype))))


def _is_contiguous(array: Any) -> bool:
    """Return whether a Numba type is a C-contiguous array, as `load` and `store` need."""
    return isinstance(array, types.Array) and array.layout == "C"


def _width(kind: Any) -> int:
    return kind.dtype.bitwidth // 8


def _load_rule(typing: Any, array: Any, offset: Any) -> Any:
    if not _is_contiguous(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, array, *arguments)
        return builder.load(address, align=_width(array))

    return Lanes(array.dtype)(array, types.intp), generate


def _store_rule(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    if not _is_contiguous(array) or value != Lanes(array.dtype):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, array, *arguments[:2])
        builder.store(arguments[2], address, align=_width(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def _transpose_rule(typing: Any, source: Any, target: Any, offset: Any) -> Any:
    """Transpose 16 x 16 numbers; each round swaps blocks of half the size of the round before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def row_address(kind: Any, array: Any, start: Any, row: int) -> Any:
            offset = builder.add(start, ir.Constant(start.type, row * LANES))
            return _address(context, builder, kind, array, offset)

        start = ir.Constant(arguments[2].type, 0)
        align = _width(source)
        rows = [
            builder.load(row_address(source, arguments[0], start, i), align=align)
            for i in range(LANES)
        ]
        size = LANES // 2
        while size:
            keep = [i if not i & size else i - size + LANES for i in range(LANES)]
            swap = [i + size if not i & size else i + LANES for i in range(LANES)]
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), x) for x in (keep, swap)]
            for i in range(LANES):
                if not i & size:
                    pair = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (builder.shuffle_vector(*pair, m) for m in masks)
            size //= 2
        for i, row in enumerate(rows):
            builder.store(row, row_address(target, arguments[1], arguments[2], i), align=align)
        return context.get_dummy_value()

    return types.void(source, target, types.intp), generate


def _sum_rule(typing: Any, value: Any) -> Any:
    """Sum over the lanes by repeated halving."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        size = LANES // 2
        while size:
            order = [(i + size) % LANES for i in range(LANES)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), order)
            x = builder.fadd(x, builder.shuffle_vector(x, x, mask), flags=_FLAGS)
            size //= 2
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return value.dtype(value), generate


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FLAGS), c, flags=_FLAGS)


def _polynomial(builder: Any, kind: ir.VectorType, x: Any, coefficients: Any) -> Any:
    """Evaluate a polynomial by Horner's rule; coefficients are ordered from the constant up."""
    y = _constant(kind, coefficients[-1])
    for number in coefficients[-2::-1]:
        y = _fma(builder, y, x, _constant(kind, number))
    return y


def _interpolated(function: Callable, degree: int, low: float, high: float) -> list[float]:
    """Return the coefficients, constant first, of a polynomial through the Chebyshev points.

    They are only accurate enough for single precision, because computing them in double precision
    loses some digits.
    """
    series = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    _, *others = series.convert(kind=np.polynomial.Polynomial).coef.tolist()
    return [1.0, *others]  # the exact value at 0 of all functions in this file


def _taylor(degree: int) -> list[float]:
    """Return the Taylor coefficients of exp at 0."""
    return [1 / math.factorial(k) for k in range(degree + 1)]


_HALF_OCTAVE = 0.5 * math.log(2) * 1.001
_EXP = {  # bits: (coefficients for |x| <= log(2) / 2, rounding constant, mantissa bits, range)
    32: (_interpolated(np.exp, 6, -_HALF_OCTAVE, _HALF_OCTAVE), 1.5 * 2**23, 23, -87.3, 88.0),
    64: (_taylor(13), 1.5 * 2**52, 52, -708.0, 709.0),
}
_LN2 = {  # log 2 as a number with few bits, whose products with integers are exact, plus the rest
    32: (0.693359375, math.log(2) - 0.693359375),
    64: (float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")),
}
_LOG1P = _interpolated(lambda t: np.log1p(t) / t, 10, 0.0, 1.0)  # log(1 + t) / t for 0 <= t <= 1
_ARTANH = [1 / (2 * k + 1) for k in range(19)]  # artanh(s) / s as a series in s^2, for s^2 <= 1 / 9


def _exp_of(builder: Any, kind: ir.VectorType, bits: int, x: Any) -> Any:
    """Emit exp(x) = 2^k exp(r) with |r| <= log(2) / 2.

    Adding 1.5 x 2^23 (single precision) rounds to an integer and leaves it in the lowest bits, from
    where it is shifted into the exponent.
    """
    coefficients, rounding, mantissa, low, high = _EXP[bits]
    for limit, sign in ((low, "<"), (high, ">")):  # comparisons with NaN are false
        limit = _constant(kind, limit)
        x = builder.select(builder.fcmp_ordered(sign, x, limit), limit, x)
    rounding = _constant(kind, rounding)
    shifted = _fma(builder, x, _constant(kind, 1 / math.log(2)), rounding)
    integer = builder.fsub(shifted, rounding)
    r = x
    for part in _LN2[bits]:
        r = _fma(builder, integer, _constant(kind, -part), r)
    y = _polynomial(builder, kind, r, coefficients)
    integer_bits = ir.VectorType(ir.IntType(bits), LANES)
    power = builder.shl(
        builder.bitcast(shifted, integer_bits), ir.Constant(integer_bits, [mantissa] * LANES)
    )
    return builder.bitcast(builder.add(builder.bitcast(y, integer_bits), power), kind)


def _softplus_of(builder: Any, kind: ir.VectorType, bits: int, x: Any) -> Any:
    """Emit log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    zero = _constant(kind, 0.0)
    negative = builder.fcmp_ordered("<", x, zero)
    minus = builder.fsub(zero, x)
    t = _exp_of(builder, kind, bits, builder.select(negative, x, minus))
    positive = builder.select(negative, zero, x)
    return builder.fadd(_log1p_of(builder, kind, bits, t), positive, flags=_FLAGS)


def _log1p_of(builder: Any, kind: ir.VectorType, bits: int, t: Any) -> Any:
    """Emit log(1 + t) for 0 <= t <= 1; double precision uses 2 artanh(t / (2 + t))."""
    if bits == 32:
        return builder.fmul(t, _polynomial(builder, kind, t, _LOG1P), flags=_FLAGS)
    two = _constant(kind, 2.0)
    s = builder.fdiv(t, builder.fadd(two, t))
    series = _polynomial(builder, kind, builder.fmul(s, s), _ARTANH)
    return builder.fmul(builder.fmul(two, s), series)


def _sigmoid_of(builder: Any, kind: ir.VectorType, bits: int, x: Any) -> Any:
    one = _constant(kind, 1.0)
    t = _exp_of(builder, kind, bits, builder.fsub(_constant(kind, 0.0), x))
    return builder.fdiv(one, builder.fadd(one, t))


def _function_rule(emit: Callable) -> Callable:
    """Return the typing rule of a function of one vector or number whose code `emit` generates."""

    def rule(typing: Any, value: Any) -> Any:
        lanes = value if isinstance(value, Lanes) else Lanes(value)
        kind = _vector(lanes)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (x,) = arguments
            if lanes is value:
                return emit(builder, kind, lanes.dtype.bitwidth, x)
            y = emit(builder, kind, lanes.dtype.bitwidth, _spread(builder, kind, x))
            return builder.extract_element(y, ir.Constant(ir.IntType(32), 0))

        return value(value), generate

    return rule


load: Any = intrinsic(_load_rule)  # (array, offset): sixteen numbers from the offset
store: Any = intrinsic(_store_rule)  # (array, offset, value)
transpose: Any = intrinsic(
    _transpose_rule
)  # (source, target, offset): 16 x 16 numbers from 0 of source to offset of target
total: Any = intrinsic(_sum_rule)  # (value): the sum over the lanes
exponential: Any = intrinsic(
    _function_rule(_exp_of)
)  # relative error up to 2e-7 in single precision
softplus: Any = intrinsic(_function_rule(_softplus_of))
sigmoid: Any = intrinsic(_function_rule(_sigmoid_of))


def _arithmetic(name: str) -> Any:
    """Return an operator for a vector and, on its right, a vector or a number."""

    def rule(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, b = arguments
            if not isinstance(right, Lanes):
                b = _spread(builder, _vector(left), b)
            return getattr(builder, name)(a, b, flags=_FLAGS)

        return left(left, right if isinstance(right, Lanes) else left.dtype), generate

    return intrinsic(rule)


def _define(symbol: Callable, name: str) -> None:
    compute = _arithmetic(name)

    @overload(symbol)
    def _operator(left, right):
        if isinstance(left, Lanes) and isinstance(right, (Lanes, types.Number)):
            return lambda left, right: compute(left, right)
        return None


_define(operator.add, "fadd")
_define(operator.mul, "fmul")
