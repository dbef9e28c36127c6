"""Int8 files of models with selective scans: the scan stays in float."""

import numpy as np
import onnx
import pytest
import torch

from zoo import runtimes
from zoo.blocks.selective import DirectionalScan, both_ways, merge_both_ways
from zoo.compression import int8_onnx, int8_openvino
from zoo.compression.recipe import Recipe
from zoo.deploy.spec import ExportSpec


class Scanned(torch.nn.Module):
    """A scan between two convolutions."""

    def __init__(self):
        super().__init__()
        self.before = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.scan = DirectionalScan(8, directions=2, d_state=4, dt_rank=2)
        self.after = torch.nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.before(x).relu()
        return self.after(merge_both_ways(self.scan(both_ways(x)), *x.shape[2:]).tanh())


@pytest.mark.parametrize(("module", "suffix"), [(int8_onnx, "onnx"), (int8_openvino, "xml")])
def test_a_scan_between_int8_layers(module, suffix, tmp_path):
    torch.manual_seed(0)
    model, file = Scanned().eval(), tmp_path / f"model.{suffix}"
    batches = [np.random.default_rng(i).random((2, 3, 8, 8), np.float32) for i in range(3)]
    made = module.convert(
        model, file, ExportSpec((1, 3, 8, 8), dynamic_batch=True), batches, Recipe()
    )
    assert sorted(made.int8) == ["after", "before"]
    module.check(model, file, batches)
    runtime = "onnxruntime" if suffix == "onnx" else "openvino"
    (found,) = runtimes.load(file, runtime, threads=1)(batches[0])
    wanted = model(torch.from_numpy(batches[0])).detach().numpy()
    assert np.abs(found - wanted).max() < 0.05 * wanted.std()
    if suffix == "onnx":
        bodies = [
            e.g for node in onnx.load(file).graph.node for e in node.attribute if e.name == "body"
        ]
        (operators,) = ({node.op_type for node in body.node} for body in bodies)
        assert operators == {"Add", "Split", "MatMul", "Concat", "Exp", "Mul"}
