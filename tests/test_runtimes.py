"""Every runtime returns what the model returns, and does not change the model."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo import runtimes
from zoo.profiling.loading import load

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        nn.init.uniform_(self.body[1].running_var, 0.5, 2.0)

    def forward(self, x):
        y = self.body(x)
        return self.drop(y.mean((2, 3))), y


@pytest.fixture(scope="module")
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


BATCH = np.random.default_rng(1).standard_normal((2, 3, 12, 10), dtype=np.float32)


@pytest.mark.parametrize(
    ("runtime", "settings", "tolerance"),
    [
        ("eager", {}, 0),
        ("eager", {"channels_last": True}, 1e-6),
        ("eager", {"dtype": "bfloat16"}, 3e-2),
        ("compile", {}, 1e-5),
        ("onnxruntime", {}, 1e-5),
        ("openvino", {}, 1e-5),
        ("executorch", {}, 1e-5),
        ("pt2", {}, 1e-6),
        ("torchscript", {}, 1e-6),
    ],
)
def test_outputs_match_the_model(model, runtime, settings, tolerance):
    threads = torch.get_num_threads()
    loaded = load(model, runtime, input_size=BATCH.shape, threads=1, **settings)
    found = loaded(BATCH)
    with torch.no_grad():
        expected = model(torch.from_numpy(BATCH))
    assert [y.shape for y in found] == [(2, 4), (2, 4, 5, 4)]
    for want, have in zip(expected, found, strict=True):
        assert have.dtype == np.float32
        np.testing.assert_allclose(have, want.numpy(), rtol=0, atol=tolerance)
    assert loaded.name == runtime
    assert (loaded.threads, loaded.device, loaded.fused) == (1, "cpu", False)
    assert loaded.dtype == settings.get("dtype", "float32")
    assert loaded.layout == ("NHWC" if settings.get("channels_last") else "NCHW")
    assert loaded.version
    assert torch.get_num_threads() == threads


def test_the_requested_threads_are_used(model):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    runtimes.load(Spy(), threads=before + 1)(BATCH)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_channels_last_reaches_the_model():
    orders = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            pair = (x, self.conv.weight)
            orders.extend(t.is_contiguous(memory_format=torch.channels_last) for t in pair)
            return x

    runtimes.load(Spy(), channels_last=True)(BATCH)
    runtimes.load(Spy())(BATCH)
    assert orders == [True, True, False, False]


def test_a_model_in_training_mode_runs_in_evaluation_mode(model):
    training = Net().train()
    training.load_state_dict(model.state_dict())
    found, expected = runtimes.load(training)(BATCH), runtimes.load(model)(BATCH)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(have, want)
    assert training.training
    assert training.drop.training
    assert not training.body[1].num_batches_tracked


def test_a_model_that_needs_no_change_is_not_copied(model):
    assert runtimes.load(model).model is model
    assert runtimes.load(model, dtype="float32").model is model
    assert runtimes.load(model, dtype="float16").model is not model
    assert next(model.parameters()).dtype == torch.float32


def test_a_model_keeps_its_type_by_default():
    assert runtimes.load(Net().eval().double()).dtype == "float64"


@pytest.mark.parametrize(
    ("source", "runtime", "message"),
    [
        ("model.onnx", "eager", "'eager' loads a model, not 'model.onnx'"),
        ("model.pt", "onnxruntime", "loads a .onnx file, not 'model.pt'"),
        ("absent.onnx", "onnxruntime", "artefact 'absent.onnx' does not exist"),
    ],
)
def test_artefacts_that_cannot_be_loaded(source, runtime, message):
    with pytest.raises(zoo.BadInput, match=message):
        runtimes.load(source, runtime)


def test_a_runtime_for_files_refuses_a_model(model):
    with pytest.raises(
        zoo.BadInput, match="'onnxruntime' only loads .onnx files; export the model"
    ):
        runtimes.load(model, "onnxruntime")


@pytest.mark.parametrize(
    ("runtime", "suffix"),
    [
        ("onnxruntime", ".onnx"),
        ("openvino", ".onnx"),
        ("openvino", ".xml"),
        ("executorch", ".pte"),
        ("pt2", ".pt2"),
        ("aoti", ".aoti.pt2"),
        ("torchscript", ".pt"),
    ],
)
def test_a_file_that_is_not_a_model(tmp_path, runtime, suffix):
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(b"this is not a model")
    message = f"runtime '{runtime}' cannot load .*broken{suffix}: "
    with pytest.raises(zoo.BadInput, match=message) as caught:
        runtimes.load(broken, runtime)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_provider(model):
    with pytest.raises(zoo.MissingExtra, match="needs CUDAExecutionProvider: pip install"):
        runtimes.load(model, "onnxruntime-cuda")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_artefact_runs_without_torch(tmp_path, model, runtime):
    from zoo.deploy.pipeline import convert

    file = tmp_path / "model.onnx"
    convert(model, file, input_size=BATCH.shape, dynamic_batch=False)
    code = (
        "import sys, numpy as np; from zoo import runtimes\n"
        f"y = runtimes.load({str(file)!r}, {runtime!r})(np.ones({BATCH.shape}, np.float32))\n"
        "assert 'torch' not in sys.modules; print(float(y[0].sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(torch.ones(BATCH.shape))[0].sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-4)


def test_signals_are_handled_after_openvino_runtimes_are_deleted(tmp_path, model):
    """Deleting cores of OpenVINO left a freed signal stack: the next signal killed the process."""
    from zoo.deploy.pipeline import convert

    file = tmp_path / "model.onnx"
    convert(model, file, input_size=BATCH.shape, dynamic_batch=False)
    code = (
        "import faulthandler, signal; from zoo import runtimes; faulthandler.enable()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        f"first = runtimes.load({str(file)!r}, 'openvino')\n"
        f"second = runtimes.load({str(file)!r}, 'openvino')\n"
        "del first; del second; signal.raise_signal(signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, model):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(zoo.ZooError, match="runtime 'onnxruntime'.*pip install onnxruntime"):
        runtimes.load(model, "onnxruntime")
    runtimes.load(model, "eager")


def test_the_threads_of_executorch_can_only_be_set_once(tmp_path, model):
    from zoo.deploy.pipeline import convert

    file = tmp_path / "model.pte"
    convert(model, file, input_size=BATCH.shape, dynamic_batch=False)
    first = runtimes.load(file, "executorch", threads=1)
    with pytest.raises(zoo.BadInput, match="threads=2: ExecuTorch already uses 1 in this process"):
        runtimes.load(file, "executorch", threads=2)
    assert first(BATCH)[0].shape == (2, 4)
