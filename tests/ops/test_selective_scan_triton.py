"""The Triton kernels of the selective scan, interpreted on any machine or run on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scan_cases import SMALL, Case, definition, relative_error

import zoo.ops
from zoo.ops.scan import operator, tiled
from zoo.ops.scan.inputs import ScanInputs

pytestmark = pytest.mark.skipif(not operator.installed("triton"), reason="Triton is not installed")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# The interpreter is slow, so these few small cases cover each branch once.
INTERPRETED = [
    Case(1, 4, 1, 3, groups=2),
    Case(2, 3, 18, 2),
    Case(1, 10, 35, 5, groups=2, softplus=False),
]
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def tensors(case, dtype=torch.float64):
    inputs = case.inputs(dtype)
    return ScanInputs(*(inputs[name] for name in NAMES))


def compare(gpu, case, dtype, device, limit):
    """Compare forward with the definition, and backward with the tiled backend."""
    inputs = case.inputs()
    given = ScanInputs(*(inputs[name].to(dtype).to(device) for name in NAMES))
    y = gpu.forward(given, case.softplus)
    assert y.dtype == dtype
    assert relative_error(y.cpu(), definition(inputs, case.softplus)) < limit
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    actual = gpu.backward(dy.to(dtype).to(device), given, case.softplus)
    expected = tiled.backward(dy, tensors(case), case.softplus)
    for name, a, b in zip(NAMES, actual, expected, strict=True):
        assert relative_error(a.cpu(), b) < 4 * limit, name
    again = gpu.backward(dy.to(dtype).to(device), given, case.softplus)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


def interpreted():
    """Run in a new process, because Triton reads TRITON_INTERPRET when it is imported."""
    from zoo.ops.scan import gpu

    for case in INTERPRETED:
        compare(gpu, case, torch.float64, "cpu", 1e-12)
    compare(gpu, INTERPRETED[1], torch.float32, "cpu", 3e-6)
    gpu.ELEMENTS = 64  # several blocks of channels per part, several parts per group
    gpu.PROGRAMS = 4
    compare(gpu, Case(1, 14, 5, 2, groups=2), torch.float64, "cpu", 1e-12)
    empty = ScanInputs(*(x[:0] if x.ndim > 2 else x for x in tensors(INTERPRETED[1])))
    assert gpu.forward(empty, True).shape == (0, 3, 18)
    assert gpu.backward(empty.u, empty, True).A.abs().sum() == 0


@pytest.mark.slow
def test_kernels_in_the_interpreter(python):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]]),
    }
    code = "import test_selective_scan_triton as t; t.interpreted()"
    result = subprocess.run(
        [*python, "-c", code], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [*SMALL, Case(2, 70, 1000, 16, groups=2)], ids=str)
def test_kernels_on_a_gpu(case, dtype):
    from zoo.ops.scan import gpu

    sizes = (case.batch, case.channels, case.length, case.states, case.groups)
    case = Case(*sizes, softplus=case.softplus)  # the kernels need skip and bias, but no gate
    compare(gpu, case, dtype, "cuda", 1e-11 if dtype == torch.float64 else 1e-5)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_auto_runs_the_kernels_on_a_gpu(dtype):
    assert zoo.ops.scan.auto_backend("cuda") == "triton"
    inputs = {k: v.cuda() for k, v in Case(2, 70, 200, 16, groups=2, z=True).inputs(dtype).items()}
    with torch.autocast("cuda", torch.bfloat16):
        actual = zoo.ops.selective_scan(**inputs)
    expected = zoo.ops.selective_scan(**inputs, backend="multi_level")
    assert actual.dtype == dtype
    assert relative_error(actual.cpu(), expected.cpu()) < {torch.float32: 1e-5}.get(dtype, 1e-2)


@on_gpu
def test_a_model_gives_the_same_output_on_a_gpu_and_has_gradients():
    model = zoo.create_model("lightm_unet_2d", init_filters=8).eval()
    x = torch.randn(2, 3, 32, 40)
    expected = model(x)
    model.cuda()
    actual = model(x.cuda())
    assert relative_error(actual.cpu(), expected) < 1e-3
    actual.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
