"""Every family, and every artefact of it, returns the same on a GPU as on a CPU."""

import copy

import numpy as np
import pytest
import torch
from support import (
    SMALLEST,
    build,
    capability,
    difference,
    fresh,
    images,
    inputs,
    quick,
    tensors,
    trainable,
)

import zoo
from zoo.command_line.composition import run as run_command
from zoo.profiling.latency import measure

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is available")
HYBRIDS = ["efficientformer_l1", "efficientvmamba_tiny", "lsnet_t"]


@pytest.fixture(autouse=True)
def _exact():
    """Disable TensorFloat-32, which multiplies with ten bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


DYNAMIC = [name for name in SMALLEST if name in zoo.list_models(dynamic_size=True)]


def outputs(model, x):
    with torch.no_grad():
        return [y.cpu() for y in tensors(model(x))]


@pytest.mark.parametrize("name", SMALLEST)
def test_outputs_match_those_on_a_cpu(name):
    model = fresh(name, torch.float64)
    for which in (0, 1):
        x = inputs(name, which=which, dtype=torch.float64)
        want = outputs(model.cpu(), x)
        # On a GPU, hard swish uses float32 constants even for float64.
        assert difference(outputs(model.cuda(), x.cuda()), want) < 2e-5


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_feature_maps_of_one_position_work(name, dtype):
    side = capability(name, "smallest", capability(name, "patch", 1))
    model = fresh(name).cuda()
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        assert all(y.isfinite().all() for y in tensors(model(images(2, (side, side)).cuda())))


@pytest.mark.parametrize("name", SMALLEST)
def test_a_fused_model_stays_on_the_gpu(name):
    model = fresh(name, torch.float64).cuda()
    x = inputs(name, dtype=torch.float64).cuda()
    fused = zoo.reparameterize(model)
    state = [*fused.parameters(), *fused.buffers()]
    assert {tensor.device.type for tensor in state} == {"cuda"}
    assert difference(outputs(fused, x), outputs(model, x)) < 1e-8


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_trains_in_bfloat16(name):
    torch.manual_seed(0)
    model = build(name, **quick(name)).cuda().train()
    with torch.autocast("cuda", torch.bfloat16):
        y = tensors(model(inputs(name).cuda()))[0]
        loss = y.float().square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in trainable(model).items()}
    assert loss.isfinite()
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("name", HYBRIDS)
def test_counts_do_not_depend_on_the_device(name):
    model = zoo.create_model(name).eval()
    here, there = zoo.count(model), zoo.count(copy.deepcopy(model).cuda())
    for what in ("macs", "flops", "params", "activations"):
        assert getattr(here, what) == getattr(there, what)


@pytest.mark.parametrize("runtime", ["eager", "compile"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_latency_is_measured_on_the_gpu(name, runtime):
    model = fresh(name, **quick(name)).cuda()
    found = measure(model, (4, 3, 64, 64), runtime, min_runs=5, min_time=0.0, max_time=30.0)
    assert found.device.startswith("cuda")
    assert found.p50_ms > 0
    assert found.peak_memory_bytes is not None
    assert found.peak_memory_bytes > 4 * 3 * 64 * 64


@pytest.mark.parametrize("name", HYBRIDS)
def test_outputs_of_a_compiled_model_match(name):
    model = fresh(name, **quick(name)).cuda()
    x = inputs(name).cuda()
    have, want = (
        zoo.runtimes.load(model, runtime)(x.cpu().numpy()) for runtime in ("compile", "eager")
    )
    assert difference([torch.from_numpy(y) for y in have], [torch.from_numpy(y) for y in want]) < (
        1e-2
    )


@pytest.mark.parametrize("format", ["onnx", "pt2", "torchscript"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_models_on_a_gpu_are_exported(name, format, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model = fresh(name, **quick(name, 1))
    here = zoo.export(copy.deepcopy(model).cuda(), format, tmp_path, input_size=(1, 3, 64, 64))
    x = inputs(name, 1)
    loaded = zoo.runtimes.load(here.path, {"onnx": "onnxruntime"}.get(format, format))
    have = torch.from_numpy(np.concatenate([loaded(x.numpy())[0], loaded(2 * x.numpy())[0]]))
    want = torch.cat(outputs(model, x) + outputs(model, 2 * x))
    assert difference(have, want) < 1e-2


def test_training_on_a_gpu(tmp_path):
    overrides = [
        "model=mobilenetv2_035",
        "data.image_size=32",
        "train.epochs=1",
        "train.limit_train_batches=4",
        "train.accelerator=cuda",
        "train.precision=bf16",
        "train.ema_decay=0.9",
        "train.loggers=[csv]",
        f"train.out={tmp_path}",
    ]
    folder = run_command("train", overrides)
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values() if tensor.ndim)
