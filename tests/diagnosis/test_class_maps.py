"""Class-activation maps of models and of ONNX files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from zoo.diagnosis import class_maps

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])  # K C
BIAS = torch.tensor([0.3, -0.7])


class Pooled(nn.Module):
    """The image is the feature map; a mean (or maximum) and a linear layer follow."""

    def __init__(self, pool: str = "mean", after: nn.Module | None = None) -> None:
        super().__init__()
        self.pool, self.after = pool, after or nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) if self.pool == "mean" else x.amax((2, 3))
        return self.after(pooled @ WEIGHT.T + BIAS)


def expected(images: Tensor, classes: Tensor) -> Tensor:
    """Return weights times features plus bias: the definition."""
    maps = torch.einsum("kc,nchw->nkhw", WEIGHT, images) + BIAS[:, None, None]
    return maps[torch.arange(len(images)), classes]


def file_of(folder: Path, batch: int | str, *, softmax: bool = False) -> Path:
    """Write an ONNX file: a convolution of one pixel, mean, linear layer."""
    nodes = [
        helper.make_node("Relu", ["x"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["shares"]))
    output = "shares" if softmax else "logits"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 5])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(WEIGHT.numpy(), "w"), numpy_helper.from_array(BIAS.numpy(), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))


CLASSES = torch.tensor([0, 1, 1])


def test_the_map_of_a_model_is_weights_times_features(images: Tensor) -> None:
    cut = class_maps.cut_model(Pooled(), torch.device("cpu"))
    assert cut is not None
    found = class_maps.class_maps(cut, images, CLASSES)
    torch.testing.assert_close(torch.from_numpy(found), expected(images, CLASSES))


@pytest.mark.parametrize("model", [Pooled("max"), Pooled(after=nn.Tanh())])
def test_heads_that_are_not_a_mean_and_linear_have_no_map(model: nn.Module, images: Tensor) -> None:
    cut = class_maps.cut_model(model, torch.device("cpu"))
    assert cut is not None
    assert class_maps.class_maps(cut, images, CLASSES) is None


def test_a_feature_map_of_one_position_has_no_map(images: Tensor) -> None:
    cut = class_maps.cut_model(Pooled(), torch.device("cpu"))
    assert cut is not None
    assert class_maps.class_maps(cut, images[:, :, :1, :1], CLASSES) is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_the_map_of_an_onnx_file_in_each_runtime(
    runtime: str, batch: int | str, images: Tensor, tmp_path: Path
) -> None:
    static = batch if isinstance(batch, int) else None
    softmax = static is not None
    file = file_of(tmp_path, batch, softmax=softmax)
    cut = class_maps.OnnxCut(file, runtime, static, lambda x: x.numpy())
    found = class_maps.class_maps(cut, images, CLASSES)
    torch.testing.assert_close(torch.from_numpy(found), expected(images, CLASSES))


def test_bright_parts_of_the_picture_are_high_parts_of_the_map() -> None:
    image = torch.full((1, 8, 8), 0.5)
    drawn = class_maps.overlay(image, np.array([[0.0, 1.0], [0.0, 0.0]]))
    assert drawn.shape == (8, 8, 3)
    assert drawn[0, -1] == pytest.approx([0.5] * 3)
    assert drawn[-1, 0, 0] < 0.25 < drawn[-1, 0, 2]
