"""The selective scan in ONNX files: one operator `Scan` whose body computes everything.

Written with ordinary operators, a scan needs tensors of B x D x L x N, which do not fit into a
cache. Here the body of `Scan` processes a block of steps: decays and inputs of the whole block at
once, then two operators a step. The state and all tensors of a block stay in the cache, and the
graph is the same for every length and batch.

Softplus is written as max(x, log(1 + exp(min(x, 80)))), which is several times faster than
ONNX Runtime's operator and as exact.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from zoo.ops.scan import operator as operator  # registers the operator

LARGE = 4096  # values of a state from which the cost of starting an operator hardly matters
# Steps of a block for large and for small states, the fastest of 1, 2, 4 ... 64 in measurements.
BLOCKS = {"onnxruntime": (1, 32), "openvino": (16, 64)}
EXP_LIMIT = 80.0  # exp of more overflows in float32; log(1 + exp(x)) equals x from 17 (37) on


def translations(runtime: str) -> dict[Any, Callable[..., Any]]:
    """Return the table by which `torch.onnx.export` translates the scans of one model.

    Args:
        runtime: The runtime to write for, a key of `BLOCKS`. Every runtime computes the same.
    """
    from onnxscript import evaluator

    count = 0

    # The parameters are those of `zoo.ops.scan.operator.selective_scan_op`. The exporter reads
    # their annotations: what has none is a tensor.
    def translate(u, delta, A, B, C, D, bias, delta_softplus: bool, backend: str):
        nonlocal count
        count += 1
        nodes, y = scan_nodes(
            f"scan_{count}", (u, delta, A, B, C, D, bias), delta_softplus, runtime
        )
        recorder: Any = evaluator.default()  # of the graph that the exporter is writing
        recorder.nodes.extend(nodes)
        return y

    return {torch.ops.zoo.selective_scan.default: translate}


def block_steps(length: int | None, values: int, runtime: str) -> int:
    """Return the number of steps of a block.

    A divisor of the length is preferred, since the last block is padded otherwise.

    Args:
        length: Number of steps of the sequence; None if it is dynamic.
        values: Number of values of the state of one image, D N.
        runtime: A key of `BLOCKS`.
    """
    large, small = BLOCKS[runtime]
    wanted = large if values >= LARGE else small
    if length is None or wanted == 1:
        return wanted
    divisors = [n for n in range((wanted + 1) // 2, 3 * wanted // 2 + 1) if length % n == 0]
    nearest = min(divisors, key=lambda n: abs(n - wanted), default=wanted)
    return min(nearest, length)


# B batch, G groups, W channels of a group, N states, L steps, T steps of a block, K blocks.
# The state is B G N W: channels are contiguous, and products with B and C are matrix products.
def scan_nodes(
    name: str, inputs: Sequence[Any], softplus: bool, runtime: str
) -> tuple[list[Any], Any]:
    """Return the nodes that compute a scan, and its result, B D L.

    Args:
        name: Prefix of the names of values, unique in the file.
        inputs: The values of `zoo.ops.scan.inputs.ScanInputs`; batch and length may be dynamic.
        softplus: Whether softplus is applied to the step sizes.
        runtime: A key of `BLOCKS`.
    """
    u, delta, A, B, C, D, bias = inputs
    _, channels, length = u.shape
    _, groups, states, _ = B.shape
    width = channels // groups
    graph = _Graph(name, u.dtype.numpy())
    batch, total = graph.size(u, 0), graph.size(u, 2)
    known = length if isinstance(length, int) else None
    steps = block_steps(known, channels * states, runtime)
    blocks: Any = -1 if known is None else -(-known // steps)
    missing = None  # steps that are missing in the last block
    if steps > 1 and (known is None or known % steps):
        missing = graph.add("Mod", graph.add("Neg", total), graph.integers(steps))

    def by_step(x: Any, axes: int) -> Any:  # B ... L to L B ...
        return graph.add("Transpose", x, perm=[axes - 1, *range(axes - 1)])

    def by_block(x: Any, *sizes: int) -> Any:  # L B ... to K T B ...
        if missing is not None:
            pads = graph.add("Concat", graph.integers(0), missing, axis=0)
            x = graph.add("Pad", x, pads, None, graph.integers(0))
        return graph.reshape(x, blocks, steps, batch, *sizes)

    now, step = by_step(u, 3), graph.add("Add", by_step(delta, 3), bias)
    if softplus:
        step = _softplus(graph, step)
    sequences = [
        by_block(step, groups, 1, width),
        by_block(graph.add("Mul", step, now), groups, 1, width),
        by_block(by_step(B, 4), groups, states, 1),
        by_block(by_step(C, 4), groups, 1, states),
    ]
    rates = graph.add("Transpose", graph.reshape(A, groups, width, states), perm=[0, 2, 1])
    start = graph.add("Expand", graph.constant(0), graph.shape(1, batch, groups, states, width))
    body = _body(f"{name}_body", u, rates, states, steps)
    _, y = graph.add("Scan", start, *sequences, count=2, body=body, num_scan_inputs=4)
    y = graph.reshape(y, -1, batch, channels)
    if missing is not None:
        y = graph.add("Slice", y, graph.integers(0), total, graph.integers(0))
    y = graph.add("Transpose", graph.add("Add", y, graph.add("Mul", now, D)), perm=[1, 2, 0])
    return graph.nodes, y


def _body(name: str, like: Any, rates: Any, states: int, steps: int) -> Any:
    """Return the body of the `Scan`: T steps, given the state before them, 1 B G N W."""
    import onnx_ir

    graph = _Graph(name, like.dtype.numpy())
    inputs = [
        onnx_ir.Value(name=f"{name}_{key}", type=like.type)
        for key in ("state", "step", "scaled", "B", "C")
    ]
    state, step, scaled, B, C = inputs
    # OpenVINO computes the matrix product of vectors of one value wrongly.
    product = "Mul" if states == 1 else "MatMul"
    decays = graph.split(graph.add("Exp", graph.add("Mul", step, rates)), steps)
    values = graph.split(graph.add(product, B, scaled), steps)
    after = []
    for decay, value in zip(decays, values, strict=True):
        state = graph.add("Add", graph.add("Mul", decay, state), value)
        after.append(state)
    together = graph.add("Concat", *after, axis=0) if steps > 1 else state
    outputs = [state, graph.add(product, C, together)]
    for output in outputs:
        output.type = like.type
    return onnx_ir.Graph(inputs, outputs, nodes=graph.nodes, name=name)


def _softplus(graph: "_Graph", x: Any) -> Any:
    limited = graph.add("Clip", x, None, graph.constant(EXP_LIMIT))
    grown = graph.add("Add", graph.add("Exp", limited), graph.constant(1))
    return graph.add("Max", x, graph.add("Log", grown))


class _Graph:
    """Nodes of a graph, or of the body of a `Scan`, in the order of their execution.

    Args:
        name: Prefix of the names of its values.
        dtype: Type of its constants.
    """

    def __init__(self, name: str, dtype: np.dtype) -> None:
        self.name, self.dtype = name, dtype
        self.nodes: list[Any] = []

    def add(self, operator: str, *inputs: Any, count: int = 1, **attributes: Any) -> Any:
        """Append a node; return its output, or a list of `count` outputs."""
        import onnx_ir

        node = onnx_ir.node(operator, list(inputs), attributes, num_outputs=count)
        for i, output in enumerate(node.outputs):
            output.name = f"{self.name}_{len(self.nodes)}_{i}"
        self.nodes.append(node)
        return node.outputs[0] if count == 1 else list(node.outputs)

    def constant(self, values: Any, dtype: Any = None) -> Any:
        """Return a constant, by default of the type of the scan."""
        import onnx_ir

        array = np.asarray(values, self.dtype if dtype is None else dtype)
        return self.add("Constant", value=onnx_ir.tensor(array))

    def integers(self, *values: int) -> Any:
        """Return a list of integers, such as axes."""
        return self.constant(values, np.int64)

    def size(self, x: Any, axis: int) -> Any:
        """Return the size of an axis, as a list of one integer."""
        size = x.shape[axis]
        if isinstance(size, int):
            return self.integers(size)
        return self.add("Shape", x, start=axis, end=axis + 1)

    def shape(self, *sizes: Any) -> Any:
        """Return a shape; a size is an integer or what `size` returns."""
        parts = [self.integers(n) if isinstance(n, int) else n for n in sizes]
        return self.add("Concat", *parts, axis=0)

    def reshape(self, x: Any, *sizes: Any) -> Any:
        """Reshape `x` to sizes as `shape` takes them."""
        return self.add("Reshape", x, self.shape(*sizes))

    def split(self, x: Any, parts: int) -> list[Any]:
        """Return `parts` tensors, which have 1 as the size of the first axis."""
        if parts == 1:
            return [x]
        return self.add("Split", x, self.integers(*[1] * parts), count=parts, axis=0)
