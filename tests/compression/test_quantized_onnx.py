"""int8 for ONNX Runtime: what the file holds, what stays in float, and that it runs bare."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import zoo
from zoo.compression.int8_onnx import convert, owner_of
from zoo.compression.layers import layers, within
from zoo.compression.recipe import Recipe
from zoo.compression.signal_to_noise import SignalToNoise
from zoo.deploy.onnx import convert as convert_float
from zoo.deploy.spec import ExportSpec
from zoo.reparam import randomize_parameters, reparameterize

SIZE = (1, 3, 16, 20)


class Net(nn.Module):
    """A convolution of each kind, ReLUs, a residual, an attention of tokens, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.down = nn.Conv2d(6, 8, 4, stride=2, padding=1, bias=False)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.idle = nn.Linear(8, 5)  # never called

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + nn.functional.relu6(self.depthwise(x))
        x = x + self.down(nn.functional.silu(self.up(x)))
        tokens = x.flatten(2).mT
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + (q @ k.mT).softmax(dim=-1) @ v
        return self.head(tokens.mean(1))


def pictures(count: int = 8, size=SIZE) -> np.ndarray:
    """Images that differ in colour, which a deep model sees better than noise."""
    generator = np.random.default_rng(count)
    colour = 2 * generator.standard_normal((count, size[1], 1, 1))
    return (colour + generator.standard_normal((count, *size[1:]))).astype(np.float32)


def answers(file, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The net in float and in int8, with its second convolution in float."""
    folder = tmp_path_factory.mktemp("onnx")
    model = Net().eval()
    settings = ExportSpec(SIZE, dynamic_batch=True)
    convert_float(model, folder / "float.onnx", settings)
    batches = [pictures(64), pictures(6)]
    convert(model, folder / "int8.onnx", settings, batches, Recipe())
    convert(model, folder / "kept.onnx", settings, batches, Recipe(keep_float=("depthwise", "qkv")))
    return model, folder


def dequantized(graph) -> dict[str, list[np.ndarray]]:
    """Return the weights that a file holds as integers: what each, its scale and its zero."""
    constants = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    return {
        node.input[0]: [constants[name] for name in node.input]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }


def test_weights_are_int8_with_a_scale_for_each_output_channel(made):
    model, folder = made
    found = dequantized(onnx.load(folder / "int8.onnx"))
    weights = [parts for parts in found.values() if parts[0].ndim > 1]
    assert len(weights) == 6  # of the seven layers one is never called
    for integers, _, zero in weights:
        assert integers.dtype == np.int8
        assert not zero.any()
    for name, axis in [("stem", 0), ("depthwise", 0), ("up", 1), ("down", 0)]:
        weight = getattr(model, name).weight.detach().numpy()
        (parts,) = [p for p in weights if p[0].shape == weight.shape and
                    np.abs(shaped(p, axis) - weight).max() < 0.05]  # fmt: skip
        assert parts[1].shape == (weight.shape[axis],)
        error = np.abs(shaped(parts, axis) - weight)
        assert (error <= 0.51 * shaped([np.ones_like(parts[0]), parts[1]], axis)).all()
        rows = np.moveaxis(parts[0].astype(int), axis, 0).reshape(weight.shape[axis], -1)
        most, least = np.sort(rows)[:, -2:], np.sort(rows)[:, :2]
        pairs = np.maximum(most.clip(0).sum(1), -least.clip(None, 0).sum(1))
        assert (pairs <= 128).all(), "no pair can overflow 16 bits"
        assert (pairs >= 112).all(), "the range is at most an eighth larger than that needs"


def shaped(parts, axis: int) -> np.ndarray:
    """Return integers times their scales."""
    integers, scale = parts[:2]
    return integers * scale.reshape([-1 if i == axis else 1 for i in range(integers.ndim)])


def test_what_is_no_weight_stays_in_float(made):
    _, folder = made
    graph = onnx.load(folder / "int8.onnx").graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("Conv") == 3
    assert ops.count("ConvTranspose") == 1
    assert "Softmax" in ops
    assert "LayerNormalization" in ops
    assert "Relu" not in ops, "it is folded into the limits of the convolution before it"
    made_of = {output: node.op_type for node in graph.node for output in node.output}
    products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm")]
    both_float = [
        n for n in products
        if all(made_of.get(name) != "DequantizeLinear" for name in n.input[:2])
    ]  # fmt: skip
    assert len(both_float) == 2, "the two products of the attention"
    assert made_of[graph.output[0].name] != "DequantizeLinear", "logits come in float"


def test_the_file_runs_bare_at_any_batch_and_is_near_the_float_one(made):
    _, folder = made
    for count in (1, 2, 7):
        images = pictures(count)
        want, have = (answers(folder / f"{kind}.onnx", images) for kind in ("float", "int8"))
        assert have.shape == want.shape == (count, 5)
    noise = SignalToNoise()
    images = pictures(64)
    noise.add(answers(folder / "float.onnx", images), answers(folder / "int8.onnx", images))
    assert 20 < noise.snr_db < 60, "near, and not the same"


def test_kept_layers_have_nothing_quantised_around_them(made):
    model, folder = made
    found = dequantized(onnx.load(folder / "kept.onnx"))
    shapes = [parts[0].shape for parts in found.values() if parts[0].ndim > 1]
    assert len(shapes) == 4
    assert tuple(model.depthwise.weight.shape) not in shapes
    graph = onnx.load(folder / "kept.onnx").graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    held = [array for array in constants.values() if array.dtype == np.float32]
    assert any(
        array.shape == model.depthwise.weight.shape
        and np.array_equal(array, model.depthwise.weight.detach().numpy())
        for array in held
    )
    (kept,) = [n for n in graph.node if n.op_type == "Conv" and n.input[1] in constants]
    users = [n.op_type for n in graph.node if kept.output[0] in n.input]
    assert users == ["Clip"], "neither rounded nor folded"


def test_names_of_source_files_are_left_out(made):
    _, folder = made
    content = (folder / "int8.onnx").read_bytes()
    assert b"stack_trace" not in content
    assert b".py" not in content
    onnx.checker.check_model(onnx.load(folder / "int8.onnx"), full_check=True)


def test_each_layer_has_its_node(made):
    model, folder = made
    graph = onnx.load(folder / "float.onnx")
    owners = {owner_of(node) for node in graph.graph.node}
    assert set(layers(model)) - owners == {"idle"}


class Again(nn.Module):
    """A layer that is used twice, as in models that recur."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = x.flatten(2).mT
        x = x + self.inner(x).relu()
        return self.head((x + self.inner(x)).mean(1))


def test_a_layer_that_is_used_twice_is_held_once_in_int8(tmp_path):
    model = Again().eval()
    settings = ExportSpec(SIZE, dynamic_batch=True)
    convert_float(model, tmp_path / "float.onnx", settings)
    convert(model, tmp_path / "int8.onnx", settings, [pictures(32)], Recipe())
    graph = onnx.load(tmp_path / "int8.onnx").graph
    kinds = {array.shape: array.dtype for array in map(numpy_helper.to_array, graph.initializer)
             if array.ndim == 2}  # fmt: skip
    assert kinds == {(3, 3): np.int8, (2, 3): np.int8}
    assert sum(node.op_type == "MatMul" for node in graph.node) == 2
    noise = SignalToNoise()
    noise.add(*(answers(tmp_path / f"{kind}.onnx", pictures(32)) for kind in ("float", "int8")))
    assert noise.snr_db > 25


def test_a_block_keeps_all_that_is_in_it():
    assert within("stages.1.mlp", ["stages.1"])
    assert within("stages.1", ["stages.1"])
    assert not within("stages.10.mlp", ["stages.1"])


def test_a_model_without_layers_is_refused(tmp_path):
    class Scaled(nn.Module):
        def forward(self, x):
            return 2 * x.mean((2, 3))

    with pytest.raises(zoo.NotExportable, match="no layer of it is left to be in int8"):
        convert(Scaled(), tmp_path / "x.onnx", ExportSpec(SIZE, True), [pictures()], Recipe())


def test_mobilenet_takes_less_than_a_third(tmp_path):
    model = reparameterize(
        randomize_parameters(zoo.create_model("mobilenetv2_100", num_classes=10)).eval()
    )
    settings = ExportSpec((1, 3, 32, 32), dynamic_batch=True)
    images = pictures(16, settings.input_size)
    convert_float(model, tmp_path / "float.onnx", settings)
    convert(model, tmp_path / "int8.onnx", settings, [images], Recipe())
    before, after = ((tmp_path / f"{kind}.onnx").stat().st_size for kind in ("float", "int8"))
    assert after < 0.30 * before
    assert len(dequantized(onnx.load(tmp_path / "int8.onnx"))) == 2 * 53  # weights and biases


def test_a_runtime_does_not_round_a_layer_that_stays_in_float(tmp_path):
    """ONNX Runtime would, between DequantizeLinear and QuantizeLinear, when it loads the file."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    with torch.no_grad():  # zero in float; a scale for all weights would drown the others
        model[0].weight[3], model[0].bias[3], model[2].weight[:, 3] = 0, -1, 300
    file, images = tmp_path / "x.onnx", pictures(16)
    convert(model, file, ExportSpec(SIZE, dynamic_batch=True), [images], Recipe(keep_float=("2",)))
    noise = SignalToNoise()
    with torch.no_grad():
        noise.add(model(torch.from_numpy(images)).numpy(), answers(file, images))
    assert noise.snr_db > 25
