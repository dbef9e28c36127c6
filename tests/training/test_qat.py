"""Quantisation-aware training: what is trained, what is kept, and what is exported of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import fresh, inputs, quick

import zoo
from zoo import runtimes
from zoo.command_line.composition import run as run_command
from zoo.data.create import create_datamodule
from zoo.deploy import int8_graph
from zoo.settings import DataConfig

from .conftest import assert_same_run, checkpoint_of, resume_run, rows_of, signal_at

pytest.importorskip("torchao")
pytest.importorskip("executorch")
onnx = pytest.importorskip("onnx")

MODEL = "simplenetv1_small_m1_05"
FLOAT = [
    f"model={MODEL}",
    "data.image_size=32",
    "train.batch_size=16",
    "train.epochs=2",
    "train.loggers=[csv]",
]
QAT = [
    "train.qat=true",
    "train.batch_size=16",
    "train.limit_train_batches=6",
    "train.limit_val_batches=3",
    "train.epochs=2",
    "train.lr=1e-3",
    "train.warmup_epochs=0",
    "train.ema_decay=0.5",
    "train.loggers=[csv]",
    "train.log_every=1",
]
IMAGES = 360  # digits to evaluate on
FLIPS = 4  # of them may get another class from the artefact: it adds up in another order


@pytest.fixture(scope="module")
def float_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float run that knows some digits."""
    given = [*FLOAT, f"train.out={tmp_path_factory.mktemp('float')}"]
    return run_command("train", given)


def qat_from(source: Path, out: Path, *overrides: str) -> Path:
    """Train for int8 from a float run."""
    given = [*QAT, f"model.checkpoint_path={source}", f"train.out={out}", *overrides]
    return run_command("train", given)


@pytest.fixture(scope="module")
def qat_run(float_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs for int8 without a break."""
    return qat_from(float_run, tmp_path_factory.mktemp("qat"))


@pytest.fixture(scope="module")
def judged(qat_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What eval.py finds."""
    given = [f"weights={qat_run}", f"out={tmp_path_factory.mktemp('judged')}"]
    return run_command("eval", given)


def images(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the validation images of a run, prepared as it did, and their classes."""
    content = checkpoint_of(run, "best")
    expects = content["data"]["preprocessing"]
    data = create_datamodule(
        DataConfig(image_size=32), batch_size=IMAGES, mean=expects["mean"], std=expects["std"]
    )
    data.setup("validate")
    x, y = next(iter(data.val_dataloader()))
    return x.numpy(), y.numpy()


def artefact_of(run: Path, out: Path, format: str) -> Any:
    given = [f"weights={run}", f"format={format}", f"export.out={out}"]
    (made,) = run_command("export", given)
    return made


def test_every_layer_rounds_weights_by_channel_and_values() -> None:
    model = zoo.create_model("mobilenetv2_035", num_classes=10).eval()
    net = int8_graph.prepare(zoo.reparameterize(model), (3, 32, 32))
    layers = [n for n in net.graph.nodes if str(n.target) in ("aten.conv2d.default",
                                                              "aten.linear.default")]  # fmt: skip
    assert len(layers) == 53
    net.calibrate([torch.randn(4, 3, 32, 32)])
    net.eval()
    for node in layers:
        values, weights = (net.get_submodule(argument.target) for argument in node.args[:2])
        weight = net.get_parameter(node.args[1].args[0].target)
        assert not values.is_per_channel
        assert weights.is_per_channel
        assert weights.ch_axis == 0
        assert weights.scale.numel() == weight.shape[0] == weight.shape[weights.ch_axis]
        assert torch.equal(weights.scale, weight.detach().abs().flatten(1).amax(1).clamp_min(
            64 * int8_graph.SMALLEST_SCALE) / 64)  # fmt: skip
        assert node.args[2].target is int8_graph.on_grid
    form = int8_graph.converted(net)
    x = torch.randn(5, 3, 32, 32)  # another batch than was traced
    with torch.no_grad():
        assert torch.equal(form(x), net(x))
    state = form.state_dict()
    assert not [key for key, value in state.items() if value.is_floating_point() and value.ndim > 1]
    weights = [value for value in state.values() if value.dtype == torch.int8]
    assert len(weights) == 53
    assert {int(weight.abs().max()) for weight in weights} == {64}, "no pair can overflow 16 bits"


@pytest.mark.parametrize("name", ["efficientformer_l1", "sret_t"])
def test_tables_and_layers_that_are_used_twice(name: str) -> None:
    """Indices into a table are no values to round, and a bias has the grid of each of its uses."""
    model, x = fresh(name, **quick(name)), inputs(name)
    net = int8_graph.prepare(zoo.reparameterize(model), x.shape[1:])
    net.calibrate([x])
    net(x).square().mean().backward()
    with torch.no_grad():
        want = net.eval()(x)
        assert not torch.equal(want[0], want[1])
        assert torch.equal(int8_graph.converted(net)(x), want)


def test_training_changes_weights_and_lowers_the_loss(float_run: Path, qat_run: Path) -> None:
    before = zoo.create_model(**checkpoint_of(float_run)["model"], checkpoint_path=str(float_run))
    fused = zoo.reparameterize(before.eval()).state_dict()
    after = checkpoint_of(qat_run)
    trained = {key: value for key, value in fused.items() if key in after["state_dict"]}
    assert trained.keys() == fused.keys()
    assert not any(torch.equal(v, after["state_dict"][k]) for k, v in trained.items() if v.ndim > 1)
    first, last = (float(row["train/loss"]) for row in rows_of(qat_run))
    assert last < first
    assert after["qat"] == {"scheme": "xnnpack/3", "fused": True, "input_size": [3, 32, 32]}


def test_ranges_follow_for_half_of_the_updates(qat_run: Path, float_run: Path, tmp_path: Path):
    half = qat_from(float_run, tmp_path, "train.stop_at_epoch=1")
    states = [checkpoint_of(run)["state_dict"] for run in (half, qat_run)]
    ranges = [key for key in states[0] if key.endswith(("min_val", "max_val"))]
    assert ranges
    assert all(torch.equal(states[0][key], states[1][key]) for key in ranges)


def test_two_halves_are_one_run_without_the_float_run(
    float_run: Path, qat_run: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(float_run, tmp_path / "source")
    with signal_at(update=4):  # in the first epoch, of six
        qat_from(source, tmp_path / "out")
    shutil.rmtree(source)
    (folder,) = (tmp_path / "out").iterdir()
    resume_run(folder)
    assert_same_run(qat_run, folder)


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_the_artefact_is_what_was_judged(
    format: str, qat_run: Path, judged: dict[str, Any], tmp_path: Path
) -> None:
    made = artefact_of(qat_run, tmp_path, format)
    manifest = made.manifest
    assert manifest["precision"] == "int8"
    assert manifest["model"]["name"] == MODEL
    assert manifest["model"]["fused"]
    assert manifest["comparison"]["proven"]
    x, y = images(qat_run)
    net = int8_graph.rebuild(checkpoint_of(qat_run, "best"), "run")
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    runtime = runtimes.load(made.path, manifest["comparison"]["runtime"], threads=1)
    step = 1 if format == "executorch" else IMAGES
    found = np.concatenate([runtime(x[i : i + step])[0] for i in range(0, len(x), step)])
    assert judged["images"] == IMAGES
    assert judged["qat"]
    assert judged["fused"]
    right = (found.argmax(1) == y).sum()
    assert round(judged["top1"]["value"] * IMAGES) == pytest.approx(right, abs=FLIPS)
    assert (wanted.argmax(1) != found.argmax(1)).sum() <= FLIPS
    params = sum(p.numel() for p in net.parameters())
    if format == "onnx":
        stored = onnx.load(made.path).graph.initializer
        weights = [tensor for tensor in stored if len(tensor.dims) > 1]
        assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
        assert sum(len(tensor.raw_data) for tensor in stored) < 1.1 * params
    assert made.path.stat().st_size < 2 * params  # a quarter of float32, and the graph


def test_it_is_no_longer_the_model(qat_run: Path, float_run: Path, tmp_path: Path) -> None:
    with pytest.raises(zoo.BadWeights, match=r"is a quantisation-aware checkpoint, not a plain"):
        zoo.load_weights(zoo.create_model(MODEL, num_classes=10), qat_run)
    with pytest.raises(
        zoo.BadWeights, match=r"comes from train\.qat already; continue it with train\.resume"
    ):
        qat_from(qat_run, tmp_path)
    given = [f"weights={qat_run}", "data.image_size=64", f"out={tmp_path}"]
    with pytest.raises(zoo.BadInput, match=r"data\.image_size=\[64, 64\]: .* for \[32, 32\] only"):
        run_command("eval", given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["format=openvino"], "in int8 to onnx, executorch"),
        (["export.half=true"], "half=True has no effect"),
        (["export.fuse=false"], "fuse=False has no effect"),
        (["export.image_size=64"], r"input_size=\[3, 64, 64\]: .* for \[3, 32, 32\] only"),
        (["export.dynamic_size=true"], "dynamic_size=True: "),
        (["quantize.int8=true"], r"quantize\.int8=true has no effect: .* leave it out"),
        (["model.drop_rate=0.1"], r"model\.drop_rate=0\.1 differs"),
    ],
)
def test_what_cannot_be_exported(
    asked: list[str], said: str, qat_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = int8_graph.rebuild(checkpoint_of(qat_run, "best"), "run")
    monkeypatch.setattr(int8_graph, "rebuild", lambda content_, named: content)
    given = [f"weights={qat_run}", f"export.out={tmp_path}", *asked]
    with pytest.raises(zoo.ZooError, match=said) as caught:
        run_command("export", given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["model.checkpoint_path=null"], r"train\.qat=true starts from trained weights"),
        (["model=mobilenetv2_035"], f"of {MODEL}, not of mobilenetv2_035; leave out"),
        (["data=digits_segmentation"], "is for classification, but data.name="),
        (["train.precision=bf16"], r"train\.precision=bf16 is not supported with train\.qat"),
        (["train.compile=true"], r"train\.compile=True is not supported"),
        (["train.loss=bias"], r"train\.loss=bias is not supported"),
        (["model.drop_path_rate=0.1"], r"model\.drop_path_rate=0\.1 has no effect"),
    ],
)
def test_what_cannot_be_trained(
    asked: list[str], said: str, float_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(zoo.ZooError, match=said) as caught:
        qat_from(float_run, tmp_path, *asked)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(
    float_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_graph, "PACKAGES", ("torchao", "absent_package"))
    with pytest.raises(zoo.ZooError, match="train.qat needs packages .* absent_package"):
        qat_from(float_run, tmp_path)


def test_what_cannot_be_traced_is_named() -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * int(x.sum().item() > 0)

    with pytest.raises(zoo.NotExportable, match=r"^Counting cannot be traced for train\.qat: "):
        int8_graph.prepare(Counting().eval(), (3, 8, 8))

    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x)

    with pytest.raises(zoo.NotExportable, match="Doubling has no layer that XNNPACK computes"):
        int8_graph.prepare(Doubling().eval(), (3, 8, 8))
