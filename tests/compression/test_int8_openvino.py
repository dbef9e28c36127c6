"""int8 for OpenVINO: what is in the file, what stays in float, and that it runs bare."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from nets import LAYERS, SIZE, Mixed, correlation, is_near, pictures, weight_of
from torch import nn

import zoo
from zoo.compression.int8_openvino import check as weights_check
from zoo.compression.int8_openvino import convert
from zoo.compression.recipe import Recipe
from zoo.compression.sanity import refuse_noise
from zoo.deploy import openvino as exporter
from zoo.deploy.spec import ExportSpec
from zoo.deploy.tracing import WithPrePostProcessing
from zoo.reparam import randomize_parameters, reparameterize
from zoo.runtimes.openvino import core

ROOT = Path(__file__).parents[2]
OPEN = ExportSpec(SIZE, dynamic_batch=True)
KEPT = {"block.depthwise", "qkv"}


def answers(file, images: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return core().compile_model(str(file), "CPU", settings)(images)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The net in float, in int8, and in int8 with two parts in float."""
    place = tmp_path_factory.mktemp("openvino")
    batches = [pictures(8), pictures(6, seed=1)]
    exporter.convert(Mixed().eval(), place / "float.xml", OPEN)
    convert(Mixed().eval(), place / "int8.xml", OPEN, batches, Recipe())
    convert(Mixed().eval(), place / "kept.xml", OPEN, batches, Recipe(keep_float=("block", "qkv")))
    return place


def integers(file) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each weight in int8 of a file with its scales."""
    found = []
    for op in core().read_model(file).get_ordered_ops():
        if op.get_type_name() == "Constant" and op.get_element_type() == openvino.Type.i8:
            (converted,) = (i.get_node() for i in op.output(0).get_target_inputs())
            (scaled,) = (i.get_node() for i in converted.output(0).get_target_inputs())
            assert (converted.get_type_name(), scaled.get_type_name()) == ("Convert", "Multiply")
            scales = scaled.input(1).get_source_output().get_node()
            found.append((op.get_data(), scales.get_data()))
    return found


def quantised(file) -> set[str]:
    """Return the layers of the net that a file has in int8."""
    held = integers(file)
    names = {
        name
        for name in LAYERS
        for whole, scales in held
        if is_near(weight_of(Mixed(), name), whole, scales)
    }
    assert len(names) == len(held)
    return names


def test_weights_are_int8_with_a_scale_for_each_output_channel(folder):
    assert quantised(folder / "int8.xml") == set(LAYERS)
    assert all(np.abs(whole).max() >= 63 for whole, _ in integers(folder / "int8.xml"))


def test_kept_layers_are_float(folder):
    assert quantised(folder / "kept.xml") == {"stem", "up", "mix", "head"}
    held = (folder / "kept.bin").read_bytes()
    for name in ("block.depthwise", "qkv"):
        weight = weight_of(Mixed(), name)
        assert weight.tobytes() in held or weight.T.tobytes() in held
    assert weight_of(Mixed(), "mix").tobytes() not in held


def test_only_layers_are_quantised(folder):
    program = core().read_model(folder / "int8.xml")
    fed = {
        target.get_node().get_type_name()
        for op in program.get_ops()
        if op.get_type_name() == "FakeQuantize"
        for target in op.output(0).get_target_inputs()
    }
    assert fed == {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}
    count = sum(op.get_type_name() == "FakeQuantize" for op in program.get_ops())
    assert count <= len(LAYERS), "one for what goes into each layer"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_runs_bare_at_any_batch(count, folder):
    have = answers(folder / "int8.xml", pictures(count, seed=2))
    assert have.shape == (count, 5)
    assert np.isfinite(have).all()


def test_it_is_near_the_float_one_and_not_the_same(folder):
    images = pictures(64, seed=3)
    want, have = (answers(folder / f"{kind}.xml", images) for kind in ("float", "int8"))
    assert correlation(have, want) > 0.93
    assert np.abs(have - want).max() > 1e-3 * want.std()


def test_the_float_program_is_that_of_the_model(folder):
    images = pictures(3)
    with torch.no_grad():
        want = Mixed().eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(answers(folder / "float.xml", images), want, rtol=0, atol=1e-5)


def test_a_real_model_takes_less_than_a_third(tmp_path):
    """Weights that tell, of a real model, fused, that takes bytes in a fixed batch."""
    model = randomize_parameters(zoo.create_model("mobilenetv2_035")).eval()
    size = (4, 3, 32, 32)
    packaged = WithPrePostProcessing(reparameterize(model), [0.5] * 3, [0.25] * 3).eval()
    batches = [
        np.clip(128 + 40 * pictures(4, size, seed=i), 0, 255).astype(np.uint8) for i in range(4)
    ]
    exporter.convert(packaged, tmp_path / "float.xml", ExportSpec(size))
    convert(
        packaged,
        tmp_path / "int8.xml",
        ExportSpec(size),
        batches,
        Recipe(keep_float=("model.stem",)),
    )
    sizes = [
        sum((tmp_path / f"{kind}{end}").stat().st_size for end in (".xml", ".bin"))
        for kind in ("float", "int8")
    ]
    assert sizes[1] < 0.34 * sizes[0]
    want, have = (
        np.concatenate([answers(tmp_path / f"{kind}.xml", batch) for batch in batches])
        for kind in ("float", "int8")
    )
    assert correlation(have, want) > 0.9


def test_a_model_without_layers_is_refused(tmp_path):
    class Scaled(nn.Module):
        def forward(self, x):
            return 2 * x.mean((2, 3))

    with pytest.raises(zoo.NotExportable, match="no layer of it is left to be in int8"):
        convert(Scaled().eval(), tmp_path / "x.xml", OPEN, [pictures(2)], Recipe())
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed_or_reported(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests/compression')\n"
        "from nets import SIZE, Mixed, pictures\n"
        "from pathlib import Path; from zoo.deploy.spec import ExportSpec\n"
        "from zoo.compression.int8_openvino import convert\n"
        "from zoo.compression.recipe import Recipe\n"
        f"file = Path({str(tmp_path)!r}) / 'x.xml'\n"
        "convert(Mixed().eval(), file, ExportSpec(SIZE), [pictures(1)], Recipe())\n"
        "import nncf.telemetry.wrapper as wrapper\n"
        "assert type(wrapper.telemetry).__name__ == 'MagicMock', wrapper.telemetry\n"
        "assert file.is_file() and None not in sys.modules.values()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_openvino_computes_wrongly_stays_in_float(tmp_path):
    """A linear layer that takes a maximum over the image."""

    class Strongest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix = nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.mix(x).relu().amax((2, 3)))

    model = Strongest().eval()
    convert(model, tmp_path / "x.xml", OPEN, [pictures(16)], Recipe())
    (only,) = integers(tmp_path / "x.xml")
    assert is_near(weight_of(model, "mix"), *only)
    images = pictures(32, seed=1)
    with torch.no_grad():
        want = model(torch.from_numpy(images)).numpy()
    assert correlation(answers(tmp_path / "x.xml", images), want) > 0.95


def test_nonsense_is_refused():
    generator = np.random.default_rng(0)
    outputs = [generator.standard_normal((4, 5)).astype(np.float32) for _ in range(4)]
    near = [y + 0.1 for y in outputs]
    refuse_noise(Mixed(), outputs, near, "a runtime")
    with pytest.raises(zoo.NotExportable, match=r"Mixed in int8: .* \(SNR -.* dB\); keep more lay"):
        refuse_noise(Mixed(), outputs[:2], outputs[2:], "a runtime")
    refuse_noise(Mixed(), outputs[:1], outputs[1:2], "a runtime")  # too few to tell


def test_no_pair_of_weights_can_overflow(folder):
    largest = {whole.shape: np.abs(whole.astype(int)).max() for whole, _ in
               integers(folder / "int8.xml")}  # fmt: skip
    depthwise = largest.pop((8, 1, 1, 3, 3))
    assert depthwise == 127, "its kernels do not add pairs"
    assert max(largest.values()) <= 64
    found = weights_check(Mixed().eval(), folder / "int8.xml", [])
    assert 100 < found["check"]["largest_pair"] <= 128


def test_layers_are_counted_in_the_file(tmp_path):
    made = convert(
        Mixed().eval(), tmp_path / "x.xml", OPEN, [pictures(8)], Recipe(keep_float=("block", "qkv"))
    )
    assert (set(made.int8), set(made.floating)) == (set(LAYERS) - KEPT, KEPT)
