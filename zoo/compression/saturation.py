"""Int8 weights whose sums cannot overflow, and the check that finds sums that could.

x86 processors without VNNI multiply unsigned bytes by signed ones and add two products in 16 bits
(`vpmaddubsw`). A sum beyond 32767 saturates without a warning: a trained MobileNetV2 lost eight
points of accuracy there, and none on the machine that wrote the file.

Two weights of the same sign that add up to at most 128 are safe: 255 * 128 = 32640. Which weights
meet in a pair depends on the kernel, so the rule here covers any two weights of an output channel.
It costs at most one bit, and less where one weight is much larger than the others. Unsigned weights
are exact too, but as slow as float: no instruction multiplies two unsigned bytes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.compression.signal_to_noise import SignalToNoise
from zoo.errors import NotExportable

PAIR_LIMIT = 128  # largest sum of two weights of the same sign: 255 * 128 < 2**15
LOWEST, HIGHEST = -(2**15), 2**15 - 1
CANDIDATES = 17  # limits to choose from
TINY = 1e-30  # limit of channels without weights
IMAGES = 4  # number of images that sums are checked on
POSITIONS = 8  # per feature map, evenly spread: checking all positions takes too long
RULE = (
    "int8; in an output channel, any two weights of the same sign add up to at most 128, so that "
    "two products with values of 0 to 255 fit into 16 bits"
)
HOLDS_FOR = "every processor: x86 with VNNI and without, Arm"


def weight_limits(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return the float value that int8's 127 represents, for each output channel.

    This is at least the largest absolute weight, and at least the sum of the two largest weights of
    the same sign. Rounding adds half a step to each of the two: 127 + 1 = `PAIR_LIMIT`. Of the
    limits up to an eighth above that, the one with the least rounding error is taken.

    Args:
        weight: The weight in float.
        axis: Axis of the output channels.
    """
    weight = np.asarray(weight, np.float64)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    least = np.maximum(_largest_pairs(weight, axis), TINY)
    candidates = least * np.linspace(1, 1.125, CANDIDATES)[:, None]
    errors = [np.square(rounded(rows, limits, 0) - rows).sum(axis=1) for limits in candidates]
    best = np.argmin(errors, axis=0)
    return candidates[best, np.arange(len(least))].astype(np.float32)


def rounded(weight: np.ndarray, limits: np.ndarray, axis: int) -> np.ndarray:
    """Return the values that weights have in int8, given the limit of each output channel."""
    scale = limits.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) / 127
    return np.round(weight / scale) * scale


def largest_pair(integers: np.ndarray, axis: int = 0) -> int:
    """Return the largest sum of two weights of the same sign in a channel, regardless of sign."""
    return int(_largest_pairs(integers.astype(np.int32), axis).max(initial=0))


def _largest_pairs(weight: np.ndarray, axis: int) -> np.ndarray:
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    sides = [np.maximum(rows, 0), np.maximum(-rows, 0)]
    if rows.shape[1] > 2:
        sides = [np.partition(side, -2, axis=1)[:, -2:] for side in sides]
    return np.maximum(*(side.sum(axis=1) for side in sides))


def check_file(file: Path, batches: Sequence[np.ndarray]) -> dict[str, Any]:
    """Evaluate an ONNX file in int8 without integer kernels, and look for sums that saturate.

    Values are those of the file's QuantizeLinear nodes, products and sums are exact integers. A sum
    counts as one that could saturate if two of its products leave 16 bits, in whichever order a
    kernel takes them.

    Args:
        file: An ONNX file with QuantizeLinear and DequantizeLinear.
        batches: Inputs of the file; the first `IMAGES` images are used.

    Returns:
        `largest_pair` of the weights; `images`, `sums` and `could_saturate`: the numbers
        of images, of sums and of sums that could saturate; `runtime_snr_db`: SNR of ONNX Runtime
        on this machine relative to the evaluation without integer kernels.
    """
    import onnx
    import onnxruntime

    graph = onnx.load(file)
    products = _products(graph)
    known = {value.name for value in graph.graph.output}
    for name in dict.fromkeys(product.values for product in products):
        if name not in known:
            graph.graph.output.append(onnx.ValueInfoProto(name=name))
    plain = _session(graph.SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    fast = _session(str(file), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    names = [value.name for value in plain.get_outputs()]
    images = sums = saturated = 0
    noise = SignalToNoise()
    for batch in batches:
        if images >= IMAGES:
            break
        (feed,) = plain.get_inputs()
        found = dict(zip(names, plain.run(None, {feed.name: batch}), strict=True))
        noise.add(found[names[0]], fast.run(names[:1], {feed.name: batch})[0])
        for product in products:
            some, unsafe = product.count(found[product.values][: IMAGES - images])
            sums, saturated = sums + some, saturated + unsafe
        images += len(batch)
    return {
        "largest_pair": max((p.largest_pair for p in products), default=0),
        "images": min(images, IMAGES),
        "sums": sums,
        "could_saturate": saturated,
        "runtime_snr_db": noise.snr_db if noise.images > 1 else None,
    }


def refuse_unsafe(title: str, found: dict[str, Any]) -> None:
    """Raise `NotExportable` if weights break the rule, or sums were found that could saturate."""
    if found["largest_pair"] > PAIR_LIMIT or found.get("could_saturate"):
        raise NotExportable(
            f"{title} in int8: two weights add up to {found['largest_pair']}, more than "
            f"{PAIR_LIMIT}, and would overflow on processors without VNNI; keep that layer in "
            "float (keep_float), and please report this"
        )


def _session(model: str | bytes, level: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Product:
    """A convolution or matrix product of integers in a file.

    Attributes:
        values: Name of the quantised input.
        largest_pair: Result of `largest_pair` for its weights.
    """

    def __init__(self, node: Any, values: str, zero: int, weight: np.ndarray) -> None:
        self.node, self.values, self.zero = node, values, zero
        attributes = {entry.name: entry for entry in node.attribute}
        self.groups = 1
        self.axes: dict[str, list[int]] = {}
        if node.op_type == "Conv":
            self.groups = attributes["group"].i if "group" in attributes else 1
            sides = weight.ndim - 2
            for key, default in (("strides", 1), ("dilations", 1), ("pads", 0)):
                given = list(attributes[key].ints) if key in attributes else []
                self.axes[key] = given or [default] * sides * (2 if key == "pads" else 1)
            self.kernel, rows = weight.shape[2:], weight.reshape(len(weight), -1)
        else:
            turned = node.op_type == "Gemm" and "transB" in attributes and attributes["transB"].i
            rows = weight if turned else weight.swapaxes(-1, -2)
            self.kernel, rows = (), rows.reshape(-1, rows.shape[-1])
        self.largest_pair = largest_pair(rows)
        self.rows = torch.from_numpy(rows.copy())

    def count(self, values: np.ndarray) -> tuple[int, int]:
        """Return how many sums were computed, and how many could saturate."""
        # Kernels read signed bytes as unsigned: values and their zero point are 128 greater.
        shift = 128 if values.dtype == np.int8 else 0
        x = torch.from_numpy(values.astype(np.int32) + shift)
        columns = self._patches(x) if self.kernel else x.reshape(-1, 1, x.shape[-1])
        columns = columns[:: max(1, math.ceil(len(columns) / POSITIONS))]  # positions, groups, K
        sums = unsafe = 0
        for column in columns:
            rows = self.rows.view(self.groups, -1, self.rows.shape[1])
            products = column[:, None] * rows  # groups, output channels of a group, K
            top = products.topk(min(2, products.shape[-1]), -1).values.clamp(min=0).sum(-1)
            low = products.topk(min(2, products.shape[-1]), -1, largest=False).values
            low = low.clamp(max=0).sum(-1)
            sums += top.numel()
            unsafe += int(((top > HIGHEST) | (low < LOWEST)).sum())
        return sums, unsafe

    def _patches(self, x: Tensor) -> Tensor:
        """Return the inputs that each output position reads: positions, groups, K."""
        sides = len(self.kernel)
        before, after = self.axes["pads"][:sides], self.axes["pads"][sides:]
        padding = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        x = torch.nn.functional.pad(x, padding, value=self.zero)
        for i, (k, stride, dilation) in enumerate(
            zip(self.kernel, self.axes["strides"], self.axes["dilations"], strict=True)
        ):
            x = x.unfold(2 + i, dilation * (k - 1) + 1, stride)[..., ::dilation]
        # N C sides... kernel... -> N sides... groups K
        x = x.movedim(1, 1 + sides)
        return x.reshape(-1, self.groups, x[(0,) * (1 + sides)].numel() // self.groups)


def _products(graph: Any) -> list[_Product]:
    """Return the products of a graph whose values and weights are both integers."""
    from onnx import TensorProto, numpy_helper

    made: dict[str, Any] = {o: node for node in graph.graph.node for o in node.output}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = []
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        if any(n not in made or made[n].op_type != "DequantizeLinear" for n in node.input[:2]):
            continue
        values, weight = (made[name] for name in node.input[:2])
        if weight.input[0] not in constants or values.input[0] in constants:
            continue
        if constants[weight.input[0]].data_type != TensorProto.INT8:
            continue  # kernels for unsigned weights add in 32 bits
        zero = numpy_helper.to_array(constants[values.input[2]]) if len(values.input) > 2 else 0
        shift = 128 if getattr(zero, "dtype", None) == np.int8 else 0
        integers = numpy_helper.to_array(constants[weight.input[0]]).astype(np.int32)
        found.append(_Product(node, values.input[0], int(zero) + shift, integers))
    return found
