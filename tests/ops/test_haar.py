"""The Haar transform: comparison with PyWavelets, properties, compiled and exported programs."""

import subprocess

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.ops import haar, haar_pyramid, inverse_haar, wavelet
from zoo.ops.wavelet import auto_backend, cpu, plain

BACKENDS = ["plain", "numba"]
SHAPES = [
    (2, 3, 8, 12),
    (1, 2, 7, 9),
    (2, 1, 6, 5),
    (1, 1, 1, 1),
    (3, 1, 4),
    (5, 6),
    (1, 2, 2, 3, 4, 6),
]
HALVES = [torch.float16, torch.bfloat16]


def maps(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def pywavelets_bands(x):
    """Return the bands of PyWavelets in the order of `haar`; its LH is high along the height."""
    low, (lh, hl, hh) = pywt.dwt2(x.numpy(), "db1", mode="zero")
    return np.stack([low, lh, hl, hh], axis=-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bands_of_a_block_match_the_definition(backend):
    p, q, r, t = 1.0, 20.0, 300.0, 4000.0
    block = torch.tensor([[p, q], [r, t]], dtype=torch.float64)
    expected = [(p + q + r + t) / 2, (p + q - r - t) / 2, (p - q + r - t) / 2, (p - q - r + t) / 2]
    assert haar(block, backend).flatten().tolist() == expected
    assert wavelet.BANDS == ("LL", "LH", "HL", "HH")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bands_match_pywavelets(shape, backend):
    x = maps(*shape)
    bands = haar(x, backend)
    assert bands.shape == (*shape[:-2], 4, -(-shape[-2] // 2), -(-shape[-1] // 2))
    np.testing.assert_allclose(bands.numpy(), pywavelets_bands(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "levels"), [((2, 32, 48), 4), ((3, 2, 13, 22), 3)])
def test_pyramids_match_pywavelets(shape, levels, backend):
    x = maps(*shape)
    pyramid = haar_pyramid(x, levels, backend)
    assert len(pyramid) == levels
    low, *details = pywt.wavedec2(x.numpy(), "db1", mode="zero", level=levels)
    np.testing.assert_allclose(pyramid[-1][..., 0, :, :].numpy(), low, rtol=0, atol=1e-13)
    for bands, expected in zip(reversed(pyramid), details, strict=True):
        found = bands[..., 1:, :, :].numpy()
        np.testing.assert_allclose(found, np.stack(expected, axis=-3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_restores_the_map(shape, backend):
    x = maps(*shape)
    bands = haar(x, backend)
    torch.testing.assert_close(inverse_haar(bands, *shape[-2:], backend), x, rtol=0, atol=1e-14)
    whole = inverse_haar(bands, backend=backend)
    assert whole.shape[-2:] == (2 * bands.shape[-2], 2 * bands.shape[-1])
    padded = F.pad(x, (0, shape[-1] % 2, 0, shape[-2] % 2))
    torch.testing.assert_close(whole, padded, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inverse_matches_pywavelets(backend):
    bands = maps(2, 3, 4, 5, 7)  # arbitrary bands
    low, lh, hl, hh = (bands[..., k, :, :].numpy() for k in range(4))
    expected = pywt.idwt2((low, (lh, hl, hh)), "db1", mode="zero")
    found = inverse_haar(bands, backend=backend).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 2, 7, 9)])
def test_the_transform_is_orthonormal(shape, backend):
    x = maps(*shape)
    bands = haar(x, backend)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    others = maps(*bands.shape)
    left, right = (bands * others).sum(), (x * inverse_haar(others, *shape[-2:], backend)).sum()
    torch.testing.assert_close(left, right)  # the inverse is the transpose


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (1, 1, 3, 5)])
def test_gradients(shape, backend):
    x = maps(*shape).requires_grad_()
    bands = haar(x.detach()).requires_grad_()
    forward, inverse = (
        (lambda x: haar(x, backend)),
        (lambda b: inverse_haar(b, *shape[-2:], backend)),
    )
    for function, argument in ((forward, x), (inverse, bands)):
        assert torch.autograd.gradcheck(function, argument)
        assert torch.autograd.gradgradcheck(function, argument)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 5, 7, 9), (3, 40, 70, 66)])
def test_backends_are_bit_identical(shape, dtype):
    x = maps(*shape, dtype=dtype)
    bands = haar(x, "plain")
    assert bands.dtype == dtype
    assert torch.equal(haar(x, "numba"), bands)
    assert torch.equal(inverse_haar(bands, backend="numba"), inverse_haar(bands, backend="plain"))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(cpu, "PIXELS_PER_THREAD", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = maps(7, 5, 10, 6)
    assert torch.equal(haar(x, "numba"), haar(x, "plain"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layout_does_not_change_the_result(backend):
    x = maps(2, 6, 8, 10)
    expected, back = haar(x, backend), haar(x, backend).contiguous()
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], -1)[..., 0],
    ):
        assert torch.equal(haar(same, backend), expected)
    permuted = back.movedim(2, 0).contiguous().movedim(0, 2)
    assert torch.equal(inverse_haar(permuted, backend=backend), inverse_haar(back, backend=backend))
    assert haar(x[:0], backend).shape == (0, 6, 4, 4, 5)
    assert inverse_haar(back[:0], backend=backend).shape == (0, 6, 8, 10)


@pytest.mark.parametrize("dtype", HALVES)
def test_error_of_half_precision(dtype):
    x = maps(2, 3, 9, 8, dtype=dtype)
    bands = haar(x)
    assert bands.dtype == dtype
    step = 3 * torch.finfo(dtype).eps * x.abs().max().item() * 2
    assert (bands.double() - haar(x.double())).abs().max() < step
    assert (inverse_haar(bands, 9, 8).double() - x.double()).abs().max() < 2 * step


def test_autocast_does_not_change_the_dtype():
    x = maps(1, 2, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(haar(x), haar(x, "plain"))
        assert haar(x).dtype == torch.float32
        assert haar(x.bfloat16()).dtype == torch.bfloat16


def test_auto_uses_numba_for_supported_tensors(monkeypatch):
    assert auto_backend() == "numba"
    assert auto_backend("meta") == auto_backend("cuda") == "plain"
    ran = []
    monkeypatch.setattr(plain, "haar", lambda x: ran.append("plain"))
    monkeypatch.setattr(wavelet.operator, "haar_op", lambda x: ran.append("numba"))
    for x in (torch.ones(2, 2), torch.ones(2, 2).double(), torch.ones(2, 2).half()):
        haar(x)
    haar(torch.ones(2, 2, device="meta"))
    assert ran == ["numba", "numba", "plain", "plain"]


def test_everything_works_without_numba(monkeypatch):
    monkeypatch.setattr(wavelet, "installed", lambda name: False)
    x = maps(1, 2, 5, 6, dtype=torch.float32)
    assert auto_backend() == "plain"
    assert torch.equal(haar(x), haar(x, "plain"))
    assert torch.equal(inverse_haar(haar(x)), inverse_haar(haar(x), backend="plain"))
    with pytest.raises(zoo.BadInput, match=r"backend='numba' is not installed; run pip install"):
        haar(x, "numba")


def test_invalid_backends():
    x = torch.ones(1, 1, 4, 4)
    for call in (haar, lambda x, backend: inverse_haar(haar(x), backend=backend)):
        with pytest.raises(
            zoo.BadInput, match="unknown backend 'conv'. Choices: auto, plain, numba"
        ):
            call(x, "conv")
        with pytest.raises(zoo.BadInput, match="float32 and float64 on the CPU, not torch.float16"):
            call(x.half(), "numba")


def test_importing_the_package_does_not_import_numba(python):
    check = "import sys, zoo.ops; sys.exit('numba' in sys.modules)"
    assert subprocess.run([*python, "-c", check], check=False).returncode == 0


class Wavelets(nn.Module):
    """Transform, inverse, and a second level."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        bands = haar(x)
        back = inverse_haar(2 * bands, x.shape[2], x.shape[3])
        return bands, back, haar_pyramid(x, 2)[1]


PROGRAM_SIZES = [(8, 12), (7, 10), (6, 9)]


def same(program, x):
    return all(torch.equal(a, b) for a, b in zip(program(x), Wavelets()(x), strict=True))


def images(size):
    return maps(2, 3, *size, dtype=torch.float32)


@pytest.mark.usefixtures("quiet_script")
@pytest.mark.filterwarnings(
    "ignore:The TorchScript type system"
)  # raised for GraphModule of PyTorch
@pytest.mark.parametrize("size", PROGRAM_SIZES)
@pytest.mark.parametrize("kind", ["script", "trace", "symbolic", "both"])
def test_programs_support_any_size(kind, size):
    program = {
        "script": lambda: torch.jit.script(Wavelets()),
        "trace": lambda: torch.jit.trace(Wavelets(), images((8, 12))),
        "symbolic": lambda: torch.fx.symbolic_trace(Wavelets()),
        "both": lambda: torch.jit.script(torch.fx.symbolic_trace(Wavelets())),
    }[kind]()
    assert same(program, images(size))


@pytest.mark.slow
def test_compiled_in_one_graph():
    torch.compiler.reset()
    program = torch.compile(Wavelets(), fullgraph=True, dynamic=True, backend="eager")
    assert all(same(program, images(size)) for size in PROGRAM_SIZES)
    torch.compiler.reset()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("size", PROGRAM_SIZES)
def test_exported(size, strict):
    program = torch.export.export(Wavelets(), (images(size),), strict=strict)
    assert same(program.module(), images(size))
    assert not any("zoo" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_exported_for_sides_that_are_multiples_of_4(strict):
    sides = {2: 4 * torch.export.Dim("h", min=2, max=9), 3: 4 * torch.export.Dim("w", min=2, max=9)}
    program = torch.export.export(
        Wavelets(), (images((8, 12)),), dynamic_shapes=(sides,), strict=strict
    ).module()
    assert all(same(program, images(size)) for size in [(8, 12), (16, 8), (36, 20)])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_onnx(size, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    x, file = images(size), tmp_path / "haar.onnx"
    program = torch.onnx.export(Wavelets().eval(), (x,), dynamo=True, verbose=False)
    program.save(file)
    found = ort.InferenceSession(file).run(None, {"x": x.numpy()})
    for actual, expected in zip(found, Wavelets()(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), expected)


def test_vmap():
    x = maps(3, 2, 6, 8, dtype=torch.float32)
    assert torch.equal(torch.vmap(haar, in_dims=1)(x), haar(x.transpose(0, 1)))
    bands = haar(x)
    assert torch.equal(torch.vmap(inverse_haar)(bands), inverse_haar(bands))


@pytest.mark.parametrize("size", [(8, 12), (64, 32)])
def test_cost_is_three_flops_per_pixel(size):
    class Both(nn.Module):
        def forward(self, x):
            return inverse_haar(haar(x))

    pixels = 3 * size[0] * size[1]
    cost = zoo.count(Both(), (1, 3, *size))
    assert cost.macs == 0
    assert cost.flops == 2 * 3 * pixels


def test_shapes_of_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        bands = haar(torch.empty(2, 3, 7, 10))
        assert bands.shape == (2, 3, 4, 4, 5)
        assert inverse_haar(bands, 7).shape == (2, 3, 7, 10)
