"""int8 for ExecuTorch: what is in the file, what stays in float, and that its runtime runs it."""

import numpy as np
import pytest
import torch
from nets import LAYERS, SIZE, Mixed, correlation, is_near, pictures, weight_of
from torch import nn

import zoo
from zoo import runtimes
from zoo.compression.int8_executorch import convert, quantized
from zoo.compression.recipe import Recipe
from zoo.deploy import executorch as exporter
from zoo.deploy import tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import quiet
from zoo.reparam import randomize_parameters, reparameterize

ONE = ExportSpec(SIZE)


def batches(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(pictures(count, seed=seed)[:, None])


def answers(file, images: list[np.ndarray]) -> np.ndarray:
    runtime = runtimes.load(file, "executorch")
    return np.concatenate([runtime(image)[0] for image in images])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The net in float, in int8, and in int8 with two parts in float."""
    place = tmp_path_factory.mktemp("executorch")
    exporter.convert(Mixed().eval(), place / "float.pte", ONE)
    convert(Mixed().eval(), place / "int8.pte", ONE, batches(16), Recipe())
    made = convert(
        Mixed().eval(), place / "kept.pte", ONE, batches(16), Recipe(keep_float=("block", "qkv"))
    )
    assert set(made.floating) == {"block.depthwise", "qkv"}
    assert set(made.int8) == set(LAYERS) - set(made.floating)
    return place


def integers(keep_float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the weights in int8 of the net's program before it is lowered, with their scales."""
    program = tracing.trace(Mixed().eval(), ONE, "a test")
    with quiet():
        made = quantized(program, batches(2), Recipe(keep_float=tuple(keep_float)))
    found = {}
    for node in made.graph.nodes:
        if "dequantize_per_channel" in str(node.target):
            whole, scales = (getattr(made, a.target).numpy() for a in node.args[:2])
            (name,) = [n for n in LAYERS if is_near(weight_of(Mixed(), n), whole, scales)]
            found[name] = (whole, scales)
    return found


def test_weights_are_int8_with_a_scale_for_each_output_channel(folder):
    held = integers([])
    assert set(held) == set(LAYERS)
    file = (folder / "int8.pte").read_bytes()
    for name, (whole, _) in held.items():
        assert whole.dtype == np.int8
        if name == "up":  # XNNPACK orders it otherwise
            continue
        assert (np.abs(whole.reshape(len(whole), -1)).max(axis=1) == 127).all()
        assert in_file(whole, file), name
        assert not in_file(weight_of(Mixed(), name), file), name


def test_kept_layers_are_float(folder):
    assert set(integers(["block", "qkv"])) == {"stem", "up", "mix", "head"}
    file = (folder / "kept.pte").read_bytes()
    kept = {name for name in LAYERS if in_file(weight_of(Mixed(), name), file)}
    assert kept == {"block.depthwise", "qkv"}


def in_file(weight: np.ndarray, file: bytes) -> bool:
    """Say whether a weight lies in a file, the way XNNPACK orders it."""
    if weight.ndim == 4:
        groups = weight.shape[1] == 1
        weight = weight.transpose((1, 2, 3, 0) if groups else (0, 2, 3, 1))
    return np.ascontiguousarray(weight).tobytes() in file


def test_it_is_near_the_float_one_and_not_the_same(folder):
    images = batches(48, seed=3)
    want, have = (answers(folder / f"{kind}.pte", images) for kind in ("float", "int8"))
    assert have.shape == want.shape == (48, 5)
    assert correlation(have, want) > 0.99
    assert np.abs(have - want).max() > 1e-3 * want.std()


def test_the_float_program_is_that_of_the_model(folder):
    (image,) = batches(1)
    with torch.no_grad():
        want = Mixed().eval()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(answers(folder / "float.pte", [image]), want, rtol=0, atol=1e-5)


def test_small_weights_are_not_rounded_away():
    """XNNPACK's quantiser has a least scale; here weights may be as small as they like."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix = nn.Conv2d(3, 4, 5, stride=5, bias=False)
            self.mix.weight.data *= 1e-3

        def forward(self, x):
            return 1e3 * self.mix(x).mean((2, 3))

    model = Small().eval()
    with quiet():
        made = quantized(tracing.trace(model, ONE, "a test"), batches(8), Recipe())
        have, want = (
            torch.cat([call(torch.from_numpy(image)) for image in batches(16, seed=1)])
            for call in (made, model)
        )
    assert correlation(have.detach().numpy(), want.detach().numpy()) > 0.999


def test_indices_stay_whole_numbers():
    """Numbers that are added to indices, as tables of positions have them, are no values."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(3, 4, 1)
            self.register_buffer("order", torch.tensor([2, 0, 1]))

        def forward(self, x):
            return self.mix(x)[:, self.order + 1].mean((2, 3))

    with quiet():
        made = quantized(tracing.trace(Shifted().eval(), ONE, "a test"), batches(4), Recipe())
        found = made(torch.from_numpy(batches(1)[0]))
    assert found.shape == (1, 3)


def test_a_real_model_takes_less_than_a_third(tmp_path):
    model = reparameterize(randomize_parameters(zoo.create_model("simplenet_cifar_310k")).eval())
    settings = ExportSpec((1, 3, 32, 32))
    images = list(pictures(12, settings.input_size)[:, None])
    exporter.convert(model, tmp_path / "float.pte", settings)
    convert(model, tmp_path / "int8.pte", settings, images, Recipe())
    before, after = ((tmp_path / f"{kind}.pte").stat().st_size for kind in ("float", "int8"))
    assert after < 0.30 * before
    want, have = (answers(tmp_path / f"{kind}.pte", images) for kind in ("float", "int8"))
    assert correlation(have, want) > 0.9


def test_a_model_without_layers_is_refused(tmp_path):
    class Scaled(nn.Module):
        def forward(self, x):
            return 2 * x.mean((2, 3))

    with pytest.raises(zoo.NotExportable, match="no layer of it is left to be in int8"):
        convert(Scaled().eval(), tmp_path / "x.pte", ONE, batches(2), Recipe())
    assert not list(tmp_path.iterdir())


class Padded(nn.Module):
    """A layer whose values are padded, as they come and turned to tokens."""

    def __init__(self, turned: bool):
        super().__init__()
        self.turned = turned
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.conv(x)
        if self.turned:
            x = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 2, 3, 0, 1), value=0.5)
        else:
            x = nn.functional.pad(x, (0, 3, 1, 0)).permute(0, 2, 3, 1)
        return self.fc(self.norm(x)).mean((1, 2))


@pytest.mark.parametrize("turned", [False, True])
def test_what_comes_out_of_a_layer_may_be_padded(turned, tmp_path):
    torch.manual_seed(0)
    model = Padded(turned).eval()
    convert(model, tmp_path / "padded.pte", ONE, batches(8), Recipe())
    images = batches(8, seed=1)
    with torch.no_grad():
        want = np.concatenate([model(torch.from_numpy(image)).numpy() for image in images])
    assert correlation(answers(tmp_path / "padded.pte", images), want) > 0.98


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_by_name_is_quantised(tmp_path):
    torch.manual_seed(0)
    padded = [
        layer
        for kernel, padding in ((3, "same"), (4, "same"), (3, "valid"))
        for layer in (nn.Conv2d(64, 64, kernel, padding=padding, dilation=(1, 2)), nn.ReLU())
    ]
    first, last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 8, 3)
    model = nn.Sequential(first, nn.ReLU(), *padded, last).eval()
    exporter.convert(model, tmp_path / "float.pte", ONE)
    made = convert(model, tmp_path / "int8.pte", ONE, batches(8), Recipe())
    assert (made.int8, made.floating) == (["0", "2", "4", "6", "8"], [])
    before, after = ((tmp_path / f"{kind}.pte").stat().st_size for kind in ("float", "int8"))
    assert after < 0.35 * before
    images = batches(8, seed=1)
    want, have = (answers(tmp_path / f"{kind}.pte", images) for kind in ("float", "int8"))
    assert correlation(have, want) > 0.99


def test_a_fault_of_the_partitioner_has_a_way_out(tmp_path, monkeypatch):
    def lower(*_):
        raise zoo.NotExportable("Mixed: Invalid partition, found dependency cycles")

    monkeypatch.setattr(exporter, "lower", lower)
    with pytest.raises(zoo.NotExportable, match="choose format=onnx or format=openvino"):
        convert(Mixed().eval(), tmp_path / "x.pte", ONE, batches(2), Recipe())
