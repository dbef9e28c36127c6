"""Selective scans in ONNX files: the nodes without a model around them, and in both runtimes."""

import subprocess

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from scan_cases import SMALL, Case, definition, relative_error

import zoo
from zoo.blocks.selective import DirectionalScan, both_ways, merge_both_ways
from zoo.deploy import onnx_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
# Lengths around whole blocks, and a state so large that a block is one step
CASES = [*SMALL, Case(2, 512, 5, 8, groups=4), Case(3, 6, 33, 1, groups=2), Case(1, 4, 96, 4)]


def scan_file(case, runtime, dtype, dynamic):
    """Return an ONNX file that is one scan."""
    sizes = {"batch": case.batch, "length": case.length, **{name: name for name in dynamic}}
    sequence = (sizes["batch"], case.channels, sizes["length"])
    weights = (sizes["batch"], case.groups, case.states, sizes["length"])
    channels = (case.channels,)
    shapes = (
        sequence,
        sequence,
        (case.channels, case.states),
        weights,
        weights,
        channels,
        channels,
    )
    values = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        for name, shape in zip(NAMES, shapes, strict=True)
    ]
    nodes, y = onnx_scan.scan_nodes("scan", values, case.softplus, runtime)
    y.shape, y.type = values[0].shape, values[0].type
    graph = ir.Graph(values, [y], nodes=nodes, opset_imports={"": 18}, name="graph")
    return ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString()


def check(case, dtype, allowed, dynamic):
    inputs = case.inputs() | {"z": None}
    zeros = inputs["u"].new_zeros(case.channels)
    inputs |= {name: zeros for name in ("D", "delta_bias") if inputs[name] is None}
    feed = {name: inputs[name].numpy().astype(dtype.numpy()) for name in NAMES}
    for runtime in onnx_scan.BLOCKS:
        session = onnxruntime.InferenceSession(scan_file(case, runtime, dtype, dynamic))
        (y,) = session.run(None, feed)
        error = relative_error(torch.from_numpy(y), definition(inputs, case.softplus))
        assert error < allowed, runtime


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_scan_of_any_batch_and_length(case):
    check(case, ir.DataType.FLOAT, 1e-6, ("batch", "length"))


@pytest.mark.parametrize("dynamic", [(), ("batch",), ("length",)])
def test_static_sizes(dynamic):
    check(Case(2, 20, 37, 8, groups=2), ir.DataType.DOUBLE, 1e-12, dynamic)


def test_large_steps_do_not_overflow():
    case = Case(1, 4, 3, 2)
    inputs = case.inputs()
    inputs["delta"] += 200
    feed = {name: inputs[name].numpy().astype(np.float32) for name in NAMES}
    session = onnxruntime.InferenceSession(scan_file(case, "onnxruntime", ir.DataType.FLOAT, ()))
    assert relative_error(torch.from_numpy(session.run(None, feed)[0]), definition(inputs)) < 1e-6


@pytest.mark.parametrize(
    ("length", "values", "ort", "openvino"),
    [
        (784, 6144, 1, 16),
        (784, 1024, 28, 56),
        (4096, 1024, 32, 64),
        (144, 448, 36, 72),
        (7, 448, 7, 7),
        (1009, 448, 32, 64),  # a prime: the last block is padded
        (None, 448, 32, 64),
    ],
)
def test_steps_of_a_block(length, values, ort, openvino):
    assert onnx_scan.block_steps(length, values, "onnxruntime") == ort
    assert onnx_scan.block_steps(length, values, "openvino") == openvino


class Scans(torch.nn.Module):
    """A scan with one state, and one with several, over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.scans = torch.nn.ModuleList(
            DirectionalScan(3, directions=2, d_state=n, dt_rank=1, init=init)
            for n, init in ((1, "uniform"), (4, "mamba"))
        )

    def forward(self, x):
        for scan in self.scans:
            x = merge_both_ways(scan(both_ways(x)), *x.shape[2:]).tanh()
        return x


# As an ONNX file: tests/deploy/test_families.py
def test_an_openvino_file(tmp_path):
    made = zoo.export(Scans().eval(), "openvino", tmp_path, input_size=(1, 3, 5, 7))
    assert made.agreement.proven  # in batches of 1, 2 and 3


def test_translating_imports_the_operator(python):
    program = "from zoo.deploy import onnx_scan; onnx_scan.translations('openvino')"
    subprocess.run([*python, "-c", program], check=True)
