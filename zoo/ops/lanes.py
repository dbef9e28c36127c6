"""Vectors of sixteen numbers for kernels that Numba compiles.

Numba leaves it to LLVM to find loops that vectorise, which fails where two arrays could overlap or
a call stands inside. `Lanes` says it outright: a value of sixteen floats of one kind, with
arithmetic, exponential, softplus and sigmoid. LLVM splits it over the registers that a processor
has, and keeps it in them. Arrays are flat to `load` and `store`: C-contiguous, with an offset from
the first element.

Products and sums are contracted, never reordered. What is no number stays none, so that a diverged
model is seen.
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
    """The type, in Numba, of sixteen numbers of the type `dtype`."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Lanes({dtype})")


@register_default(Lanes)
class _LanesModel(PrimitiveModel):
    """A vector of LLVM's."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(kind))


def _vector(kind: Lanes) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType(), LANES)


def _spread(builder: Any, kind: ir.VectorType, number: Any) -> Any:
    """Return a vector of one scalar, sixteen times."""
    first = builder.insert_element(
        ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
    )
    same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, first, same)


def _constant(kind: ir.VectorType, number: float) -> Any:
    return ir.Constant(kind, [number] * LANES)


def _place(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Return the address of an element of a C-contiguous array, as one of a vector."""
    data = context.make_array(kind)(context, builder, array).data
    address = builder.gep(data, [offset], inbounds=True)
    return builder.bitcast(address, ir.PointerType(_vector(Lanes(kind.dtype))))


def _flat(array: Any) -> bool:
    """Say whether a type of Numba is an array that `load` and `store` can read."""
    return isinstance(array, types.Array) and array.layout == "C"


def _width(kind: Any) -> int:
    return kind.dtype.bitwidth // 8


def _load_rule(typing: Any, array: Any, offset: Any) -> Any:
    if not _flat(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, array, *arguments)
        return builder.load(place, align=_width(array))

    return Lanes(array.dtype)(array, types.intp), generate


def _store_rule(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    if not _flat(array) or value != Lanes(array.dtype):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, array, *arguments[:2])
        builder.store(arguments[2], place, align=_width(array))
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def _transpose_rule(typing: Any, source: Any, target: Any, offset: Any) -> Any:
    """Sixteen rows of `source` become columns; each round swaps blocks of half the size."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(kind: Any, array: Any, start: Any, row: int) -> Any:
            offset = builder.add(start, ir.Constant(start.type, row * LANES))
            return _place(context, builder, kind, array, offset)

        start = ir.Constant(arguments[2].type, 0)
        align = _width(source)
        rows = [
            builder.load(place(source, arguments[0], start, i), align=align) for i in range(LANES)
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
            builder.store(row, place(target, arguments[1], arguments[2], i), align=align)
        return context.get_dummy_value()

    return types.void(source, target, types.intp), generate


def _sum_rule(typing: Any, value: Any) -> Any:
    """The sum over the lanes, by halves."""

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
    """By Horner's rule, from the coefficient of the highest power down."""
    y = _constant(kind, coefficients[-1])
    for number in coefficients[-2::-1]:
        y = _fma(builder, y, x, _constant(kind, number))
    return y


def _interpolated(function: Callable, degree: int, low: float, high: float) -> list[float]:
    """Return the coefficients of a polynomial through Chebyshev's points, constant first.

    Good for single precision only: in the sums behind the coefficients double precision loses some
    of its last digits.
    """
    series = np.polynomial.Chebyshev.interpolate(function, degree, domain=[low, high])
    _, *others = series.convert(kind=np.polynomial.Polynomial).coef.tolist()
    return [1.0, *others]  # the value at 0 of all functions here, exactly


def _taylor(degree: int) -> list[float]:
    """Return the coefficients of exp about 0."""
    return [1 / math.factorial(k) for k in range(degree + 1)]


_HALF_OCTAVE = 0.5 * math.log(2) * 1.001
_EXP = {  # bits: coefficients on half an octave about 0, magic number, bits of fraction, range
    32: (_interpolated(np.exp, 6, -_HALF_OCTAVE, _HALF_OCTAVE), 1.5 * 2**23, 23, -87.3, 88.0),
    64: (_taylor(13), 1.5 * 2**52, 52, -708.0, 709.0),
}
_LN2 = {  # log 2 as a number of few bits, whose products with whole numbers are exact, and the rest
    32: (0.693359375, math.log(2) - 0.693359375),
    64: (float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")),
}
_LOG1P = _interpolated(lambda t: np.log1p(t) / t, 10, 0.0, 1.0)  # log(1 + t) / t on 0 to 1
_ARTANH = [1 / (2 * k + 1) for k in range(19)]  # artanh(s) / s by powers of s^2, for s^2 <= 1 / 9


def _exp_of(builder: Any, kind: ir.VectorType, bits: int, x: Any) -> Any:
    """exp(x) = 2^k exp(r) with |r| <= log(2) / 2.

    Adding 1.5 x 2^23 rounds to a whole number and leaves it in the lowest bits, from where it is
    shifted into the exponent.
    """
    coefficients, magic, fraction, low, high = _EXP[bits]
    for limit, sign in ((low, "<"), (high, ">")):  # comparisons with what is no number are false
        limit = _constant(kind, limit)
        x = builder.select(builder.fcmp_ordered(sign, x, limit), limit, x)
    magic = _constant(kind, magic)
    shifted = _fma(builder, x, _constant(kind, 1 / math.log(2)), magic)
    whole = builder.fsub(shifted, magic)
    r = x
    for part in _LN2[bits]:
        r = _fma(builder, whole, _constant(kind, -part), r)
    y = _polynomial(builder, kind, r, coefficients)
    whole_bits = ir.VectorType(ir.IntType(bits), LANES)
    power = builder.shl(
        builder.bitcast(shifted, whole_bits), ir.Constant(whole_bits, [fraction] * LANES)
    )
    return builder.bitcast(builder.add(builder.bitcast(y, whole_bits), power), kind)


def _softplus_of(builder: Any, kind: ir.VectorType, bits: int, x: Any) -> Any:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    zero = _constant(kind, 0.0)
    negative = builder.fcmp_ordered("<", x, zero)
    minus = builder.fsub(zero, x)
    t = _exp_of(builder, kind, bits, builder.select(negative, x, minus))
    positive = builder.select(negative, zero, x)
    return builder.fadd(_log1p_of(builder, kind, bits, t), positive, flags=_FLAGS)


def _log1p_of(builder: Any, kind: ir.VectorType, bits: int, t: Any) -> Any:
    """log(1 + t) for t in 0 to 1, in double precision as 2 artanh(t / (2 + t))."""
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
    """Return the rule of a function of one vector, or of one number, that `emit` writes."""

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


load: Any = intrinsic(_load_rule)  # (array, offset): the sixteen numbers from there
store: Any = intrinsic(_store_rule)  # (array, offset, value)
transpose: Any = intrinsic(_transpose_rule)  # (source, target, offset): 16 x 16 from 0 to offset
total: Any = intrinsic(_sum_rule)  # (value): the sum over the lanes, a number
exponential: Any = intrinsic(_function_rule(_exp_of))  # in single precision within 2e-7
softplus: Any = intrinsic(_function_rule(_softplus_of))
sigmoid: Any = intrinsic(_function_rule(_sigmoid_of))


def _arithmetic(name: str) -> Any:
    """Return an operator between vectors, or a vector and a number on the right."""

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
