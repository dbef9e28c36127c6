"""The rules of `zoo.count`: the cost of one call of each operator.

A rule returns three quantities for an operator as PyTorch's tracer names it (`aten::...`):

* MACs: multiply-accumulates, only of convolutions, matrix products and attention;
* elementwise FLOPs: elementwise arithmetic, norms, softmax, pooling and resizing;
* activations: the elements in the output of an operator that has MACs.

FLOPs are 2 x MACs + elementwise FLOPs. An operator without a rule raises an error; it never counts
as zero.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

with warnings.catch_warnings():  # importing fvcore scripts one of its losses
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn import FlopCountAnalysis as FlopCountAnalysis
    from fvcore.nn import jit_handles as fvcore
    from fvcore.nn.jit_handles import get_shape

from zoo.ops.scan import cost

Rule = Callable[[list[Any], list[Any]], Counter]


def macs(count: int, outputs: list[Any], name: str) -> Counter:
    """Return the cost of an operator with `count` MACs, whose output counts as activations."""
    return Counter({f"macs:{name}": int(count), f"activations:{name}": numel(outputs[0])})


def elementwise(count: float, name: str) -> Counter:
    """Return the cost of an operator with `count` elementwise FLOPs."""
    return Counter({f"elementwise:{name}": int(count)})


def shape(value: Any) -> list[int]:
    """Return the shape of a traced tensor."""
    sizes = get_shape(value)
    if sizes is None:
        raise NotImplementedError(f"{value.node().kind()}, whose shape the tracer did not record")
    return sizes


def numel(value: Any) -> int:
    """Return the number of elements of a traced tensor."""
    return math.prod(shape(value))


def _from_fvcore(handle: Callable, name: str) -> Rule:
    def rule(inputs: list[Any], outputs: list[Any]) -> Counter:
        count = handle(inputs, outputs)
        return macs(sum(count.values()) if isinstance(count, Counter) else count, outputs, name)

    return rule


def _convolution_mode(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Convolution with `padding="same"` or `"valid"`: kernel size x input channels per output."""
    per_output = math.prod(shape(inputs[1])[1:])
    return macs(numel(outputs[0]) * per_output, outputs, "conv")


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter:
    """(..., n, k) x (..., k, m) with broadcasting, or vectors: k MACs per output element."""
    return macs(numel(outputs[0]) * shape(inputs[0])[-1], outputs, "matmul")


def _baddbmm(inputs: list[Any], outputs: list[Any]) -> Counter:
    return macs(numel(outputs[0]) * shape(inputs[1])[-1], outputs, "matmul")


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Two operands: the product of the sizes of all letters. One operand: nothing is multiplied."""
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [shape(node) for node in inputs[1].node().inputs()]
    operands = equation.split("->")[0].split(",")
    if "." in equation or len(operands) > 2:
        raise NotImplementedError(f"einsum {equation!r} (only two operands without '...')")
    sizes: dict[str, int] = {}
    for letters, extents in zip(operands, shapes, strict=True):
        for letter, size in zip(letters, extents, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # an axis of size 1 is broadcast
    if len(operands) == 1:
        return Counter()
    return macs(math.prod(sizes.values()), outputs, "einsum")


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Both matrix products, plus scale, mask and softmax: the cost of unfused attention."""
    query, key, value = (shape(node) for node in inputs[:3])
    pairs = math.prod(query[:-1]) * key[-2]
    cost = macs(pairs * (query[-1] + value[-1]), outputs, "attention")
    mask = inputs[3].node().mustBeNone() if inputs[3].node().kind() == "prim::Constant" else False
    per_pair = SOFTMAX + (0 if mask else 1)
    cost["activations:attention"] += pairs
    return cost + elementwise(pairs * per_pair + math.prod(query), "attention")


def _scan(inputs: list[Any], outputs: list[Any]) -> Counter:
    """FLOPs by the usual convention and no MACs; the reason is in zoo/ops/scan/cost.py."""
    return elementwise(cost.flops(shape(inputs[0]), shape(inputs[2])), "scan")


def _bilinear(inputs: list[Any], outputs: list[Any]) -> Counter:
    """Two matrix products per output element: the weight with one input, then with the other."""
    _, first, second = shape(inputs[2])
    return macs(numel(outputs[0]) * (first * second + second), outputs, "linear")


def _recurrent(gates: int, flops: int) -> Rule:
    """Return the rule of a recurrent layer: every weight matrix is used once per time step.

    Args:
        gates: Number of vectors that a hidden-to-hidden matrix computes for each hidden unit.
        flops: Elementwise FLOPs per hidden unit and time step.
    """

    def rule(inputs: list[Any], outputs: list[Any]) -> Counter:
        # The weights are the last list of tensors (LSTMs also get their states as a list), followed
        # by: has biases, number of layers, dropout, training, bidirectional.
        at = max(i for i, x in enumerate(inputs) if x.node().kind() == "prim::ListConstruct")
        matrices = [s for s in map(shape, inputs[at].node().inputs()) if len(s) == 2]
        directions = inputs[at + 2].toIValue() * (1 + inputs[at + 5].toIValue())
        hidden_to_hidden = matrices[1 :: len(matrices) // directions]
        steps = numel(inputs[0]) // matrices[0][1]  # time steps x batch
        units = sum(rows // gates for rows, _ in hidden_to_hidden)
        products = macs(steps * sum(map(math.prod, matrices)), outputs, "recurrent")
        return products + elementwise(steps * units * flops, "recurrent")

    return rule


def _fourier(flops: float, axes: int | None) -> Rule:
    """Return the usual estimate of fast Fourier transforms, `flops` x n x log2(n) for n elements.

    Args:
        flops: 5 for complex numbers, 2.5 if one side is real.
        axes: Number of transformed axes if the call does not name them; None: all.
    """

    def rule(inputs: list[Any], outputs: list[Any]) -> Counter:
        whole = max(shape(inputs[0]), shape(outputs[0]), key=math.prod)  # the real side is whole
        named = inputs[2].toIValue() if inputs[2].node().kind() == "prim::Constant" else None
        if inputs[2].node().kind() == "prim::ListConstruct":
            named = _ints(inputs[2], 1)
        dims = [named] if isinstance(named, int) else named or range(-(axes or len(whole)), 0)
        size = math.prod(whole[dim] for dim in dims)
        return elementwise(flops * math.prod(whole) * math.log2(size), "fourier")

    return rule


def _per_output(flops: float, name: str) -> Rule:
    return lambda inputs, outputs: elementwise(flops * numel(outputs[0]), name)


def _per_input(flops: float, name: str) -> Rule:
    return lambda inputs, outputs: elementwise(flops * numel(inputs[0]), name)


def _norm(flops: float, affine: int, name: str) -> Rule:
    """Return the rule `flops` per element, plus 2 if input number `affine` is a weight."""

    def rule(inputs: list[Any], outputs: list[Any]) -> Counter:
        has_affine = get_shape(inputs[affine]) is not None
        return elementwise((flops + 2 * has_affine) * numel(inputs[0]), name)

    return rule


def _window_pool(inputs: list[Any], outputs: list[Any]) -> Counter:
    """One FLOP per element of each window."""
    dims = len(shape(inputs[0])) - 2
    return elementwise(numel(outputs[0]) * math.prod(_ints(inputs[1], dims)), "pool")


def _bags(inputs: list[Any], outputs: list[Any]) -> Counter:
    """One FLOP per element of the embeddings that are added up, averaged or compared."""
    return elementwise(numel(inputs[1]) * shape(inputs[0])[-1], "reduce")


def _ints(value: Any, count: int) -> list[int]:
    """Return the integers of a traced list; a single integer is repeated `count` times."""
    if value.node().kind() == "prim::ListConstruct":
        numbers = [int(item.toIValue()) for item in value.node().inputs()]
    else:
        numbers = list(value.toIValue())
    return numbers * count if len(numbers) == 1 else numbers


SOFTMAX = 5  # maximum, difference, exponential, sum, quotient

_MACS: dict[str, Rule] = {
    "aten::_convolution": _from_fvcore(fvcore.conv_flop_jit, "conv"),
    "aten::_convolution_mode": _convolution_mode,
    "aten::linear": _from_fvcore(fvcore.linear_flop_jit, "linear"),
    "aten::addmm": _from_fvcore(fvcore.addmm_flop_jit, "linear"),
    "aten::bmm": _from_fvcore(fvcore.bmm_flop_jit, "matmul"),
    "aten::mm": _matmul,
    "aten::mv": _matmul,
    "aten::dot": _matmul,
    "aten::matmul": _matmul,
    "aten::baddbmm": _baddbmm,
    "aten::einsum": _einsum,
    "aten::bilinear": _bilinear,
    "aten::rnn_tanh": _recurrent(gates=1, flops=2),  # sum, activation
    "aten::rnn_relu": _recurrent(gates=1, flops=2),
    "aten::gru": _recurrent(gates=3, flops=11),  # 3 sums, 3 activations, reset 1, new state 4
    "aten::lstm": _recurrent(gates=4, flops=13),  # 4 sums, 5 activations, cell 3, output 1
    "aten::scaled_dot_product_attention": _attention,
}

_COMPOSITE: dict[str, Rule] = {
    "aten::softmax": _per_output(SOFTMAX, "softmax"),
    "aten::log_softmax": _per_output(SOFTMAX, "softmax"),
    "aten::batch_norm": _per_output(2, "batch_norm"),  # in evaluation mode: scale and shift
    "aten::layer_norm": _norm(5, 2, "layer_norm"),  # mean 1, variance 2, normalise 2
    "aten::group_norm": _norm(5, 2, "group_norm"),
    "aten::instance_norm": _norm(5, 1, "instance_norm"),
    "aten::rms_norm": _norm(3, 2, "rms_norm"),
    "aten::linalg_vector_norm": _per_input(2, "vector_norm"),
    "aten::norm": _per_input(2, "vector_norm"),
    "aten::avg_pool1d": _window_pool,
    "aten::avg_pool2d": _window_pool,
    "aten::avg_pool3d": _window_pool,
    "aten::max_pool1d": _window_pool,
    "aten::max_pool2d": _window_pool,
    "aten::max_pool3d": _window_pool,
    "aten::adaptive_avg_pool1d": _per_input(1, "pool"),
    "aten::adaptive_avg_pool2d": _per_input(1, "pool"),
    "aten::adaptive_avg_pool3d": _per_input(1, "pool"),
    "aten::adaptive_max_pool1d": _per_input(1, "pool"),
    "aten::adaptive_max_pool2d": _per_input(1, "pool"),
    "aten::adaptive_max_pool3d": _per_input(1, "pool"),
    "aten::fractional_max_pool2d": _window_pool,
    "aten::fractional_max_pool3d": _window_pool,
    "aten::embedding_bag": _bags,
    "aten::cosine_similarity": _per_input(6, "reduce"),  # 3 sums of products
    "aten::pairwise_distance": _per_input(4, "reduce"),  # difference, epsilon, norm 2
    "aten::_weight_norm": _per_input(3, "arithmetic"),  # norm 2, scale 1
    "aten::upsample_bilinear2d": _per_output(8, "resize"),  # 4 taps
    "aten::upsample_bicubic2d": _per_output(32, "resize"),  # 16 taps
    "aten::_upsample_bilinear2d_aa": _per_output(
        8, "resize"
    ),  # a lower bound: shrinking reads more taps
    "aten::_upsample_bicubic2d_aa": _per_output(32, "resize"),
    "aten::upsample_linear1d": _per_output(4, "resize"),  # 2 taps
    "aten::upsample_trilinear3d": _per_output(16, "resize"),  # 8 taps
    "aten::grid_sampler": _per_output(8, "resize"),
    "aten::var": _per_input(3, "reduce"),
    "aten::std": _per_input(3, "reduce"),
    "aten::var_mean": _per_input(3, "reduce"),
    "aten::lerp": _per_output(3, "arithmetic"),
    "aten::addcmul": _per_output(2, "arithmetic"),
    "aten::glu": _per_output(2, "activation"),
    "zoo::selective_scan": _scan,
    **{f"aten::fft_{kind}": _fourier(5, 1) for kind in ("fft", "ifft")},
    **{f"aten::fft_{kind}": _fourier(2.5, 1) for kind in ("rfft", "irfft")},
    **{f"aten::fft_{kind}": _fourier(5, 2) for kind in ("fft2", "ifft2")},
    **{f"aten::fft_{kind}": _fourier(2.5, 2) for kind in ("rfft2", "irfft2")},
    **{f"aten::fft_{kind}": _fourier(5, None) for kind in ("fftn", "ifftn")},
    **{f"aten::fft_{kind}": _fourier(2.5, None) for kind in ("rfftn", "irfftn")},
}

# One FLOP per input element.
_REDUCTIONS = (
    "sum mean amax amin max min prod cumsum cumprod logsumexp argmax argmin any all topk sort"
).split()

# One FLOP per output element, no matter how the function is computed.
_ARITHMETIC = (
    "add sub rsub mul div floor_divide remainder fmod pow square sqrt rsqrt reciprocal exp exp2 "
    "expm1 log log2 log1p sin cos tan tanh atan2 erf abs neg sign floor ceil round maximum minimum "
    "clamp clamp_min clamp_max where masked_fill bitwise_and bitwise_or bitwise_not logical_and "
    "logical_or logical_not eq ne lt le gt ge __and__ __or__ sigmoid"
).split()
_ACTIVATIONS = (
    "relu relu6 hardtanh gelu silu mish elu selu celu leaky_relu prelu softplus hardswish "
    "hardsigmoid hardshrink softshrink threshold rrelu log_sigmoid"
).split()

# No FLOPs: views, copies, constants, sizes, indexing.
FREE = frozenset(
    f"aten::{name}"
    for name in (
        "__contains__ __is__ format list Int ScalarImplicit FloatImplicit IntImplicit Bool Float "
        "size numel arange linspace zeros "
        "ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like "
        "empty_like scalar_tensor tensor lift_fresh eye tril triu meshgrid tril_indices "
        "contiguous clone copy detach alias to type_as view view_as reshape flatten unflatten "
        "expand expand_as repeat repeat_interleave tile permute transpose movedim swapaxes t mT "
        "numpy_T squeeze unsqueeze select slice narrow split split_with_sizes tensor_split chunk "
        "unbind cat concat stack hstack vstack pad constant_pad_nd reflection_pad1d "
        "reflection_pad2d replication_pad2d roll flip rot90 unfold im2col col2im as_strided "
        "pixel_shuffle pixel_unshuffle channel_shuffle gather index index_select index_put take "
        "take_along_dim embedding scatter masked_select nonzero one_hot diagonal diag_embed "
        "upsample_nearest1d upsample_nearest2d dropout feature_dropout dropout_ alpha_dropout "
        "feature_alpha_dropout unsafe_chunk unsafe_split fft_fftshift fft_ifftshift "
        "is_floating_point dim _shape_as_tensor broadcast_tensors broadcast_to real imag "
        "view_as_real view_as_complex complex fill zero bernoulli rand randn rand_like randn_like "
        "reshape_as upsample_nearest3d"
    ).split()
)


def _free(inputs: list[Any], outputs: list[Any]) -> Counter:
    return Counter()


def all_rules() -> dict[str, Rule]:
    """Return the rule of every known operator; in-place variants cost the same."""
    rules: dict[str, Rule] = {**dict.fromkeys(FREE, _free), **_MACS, **_COMPOSITE}
    rules |= {f"aten::{name}": _per_input(1, "reduce") for name in _REDUCTIONS}
    rules |= {f"aten::{name}": _per_output(1, "arithmetic") for name in _ARITHMETIC}
    rules |= {f"aten::{name}": _per_output(1, "activation") for name in _ACTIVATIONS}
    in_place = {f"{name}_": rule for name, rule in rules.items() if not name.endswith("_")}
    return {**in_place, **rules}
