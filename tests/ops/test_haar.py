"""The Haar transform against PyWavelets, its own laws, and what turns it into programs."""

import subprocess

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.ops import haar, haar_pyramid, inverse_haar, inverse_haar_pyramid, wavelet
from zoo.ops.wavelet import cpu, plain, running

FORMS = ["plain", "numba"]
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


def theirs(x):
    """PyWavelets' bands in our order; its LH is high along the height."""
    low, (lh, hl, hh) = pywt.dwt2(x.numpy(), "db1", mode="zero")
    return np.stack([low, lh, hl, hh], axis=-3)


@pytest.mark.parametrize("form", FORMS)
def test_bands_of_a_block_are_the_definition(form):
    p, q, r, t = 1.0, 20.0, 300.0, 4000.0
    block = torch.tensor([[p, q], [r, t]], dtype=torch.float64)
    want = [(p + q + r + t) / 2, (p + q - r - t) / 2, (p - q + r - t) / 2, (p - q - r + t) / 2]
    assert haar(block, form).flatten().tolist() == want
    assert wavelet.BANDS == ("LL", "LH", "HL", "HH")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bands_are_those_of_pywavelets(shape, form):
    x = maps(*shape)
    bands = haar(x, form)
    assert bands.shape == (*shape[:-2], 4, -(-shape[-2] // 2), -(-shape[-1] // 2))
    np.testing.assert_allclose(bands.numpy(), theirs(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "levels"), [((2, 32, 48), 4), ((3, 2, 13, 22), 3)])
def test_pyramids_are_those_of_pywavelets(shape, levels, form):
    x = maps(*shape)
    pyramid = haar_pyramid(x, levels, form)
    assert len(pyramid) == levels
    low, *details = pywt.wavedec2(x.numpy(), "db1", mode="zero", level=levels)
    np.testing.assert_allclose(pyramid[-1][..., 0, :, :].numpy(), low, rtol=0, atol=1e-13)
    for bands, wanted in zip(reversed(pyramid), details, strict=True):
        found = bands[..., 1:, :, :].numpy()
        np.testing.assert_allclose(found, np.stack(wanted, axis=-3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_gives_the_map_back(shape, form):
    x = maps(*shape)
    bands = haar(x, form)
    torch.testing.assert_close(inverse_haar(bands, *shape[-2:], form), x, rtol=0, atol=1e-14)
    whole = inverse_haar(bands, backend=form)
    assert whole.shape[-2:] == (2 * bands.shape[-2], 2 * bands.shape[-1])
    completed = F.pad(x, (0, shape[-1] % 2, 0, shape[-2] % 2))
    torch.testing.assert_close(whole, completed, rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_the_inverse_is_that_of_pywavelets(form):
    bands = maps(2, 3, 4, 5, 7)  # any bands, not those of a map
    low, lh, hl, hh = (bands[..., k, :, :].numpy() for k in range(4))
    want = pywt.idwt2((low, (lh, hl, hh)), "db1", mode="zero")
    found = inverse_haar(bands, backend=form).numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "levels"), [((2, 16, 24), 3), ((1, 3, 13, 21), 4), ((3, 5), 6)])
def test_pyramids_give_the_map_back(shape, levels, form):
    x = maps(*shape)
    pyramid = haar_pyramid(x, levels, form)
    pyramid[:-1] = [  # LL above the last level is not read
        torch.cat([torch.full_like(b[..., :1, :, :], torch.nan), b[..., 1:, :, :]], -3)
        for b in pyramid[:-1]
    ]
    again = inverse_haar_pyramid(pyramid, *shape[-2:], form)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 2, 7, 9)])
def test_the_transform_is_orthonormal(shape, form):
    x = maps(*shape)
    bands = haar(x, form)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    others = maps(*bands.shape)
    left, right = (bands * others).sum(), (x * inverse_haar(others, *shape[-2:], form)).sum()
    torch.testing.assert_close(left, right)  # the inverse is the transpose


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (1, 1, 3, 5)])
def test_gradients(shape, form):
    x = maps(*shape).requires_grad_()
    bands = haar(x.detach()).requires_grad_()
    forward, inverse = (lambda x: haar(x, form)), (lambda b: inverse_haar(b, *shape[-2:], form))
    for function, argument in ((forward, x), (inverse, bands)):
        assert torch.autograd.gradcheck(function, argument)
        assert torch.autograd.gradgradcheck(function, argument)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 5, 7, 9), (3, 40, 70, 66)])
def test_both_forms_give_the_same_bits(shape, dtype):
    x = maps(*shape, dtype=dtype)
    bands = haar(x, "plain")
    assert bands.dtype == dtype
    assert torch.equal(haar(x, "numba"), bands)
    assert torch.equal(inverse_haar(bands, backend="numba"), inverse_haar(bands, backend="plain"))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads, monkeypatch):
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = maps(7, 5, 10, 6)
    assert torch.equal(haar(x, "numba"), haar(x, "plain"))


@pytest.mark.parametrize("form", FORMS)
def test_layout_in_memory_is_of_no_effect(form):
    x = maps(2, 6, 8, 10)
    want, back = haar(x, form), haar(x, form).contiguous()
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], -1)[..., 0],
    ):
        assert torch.equal(haar(same, form), want)
    aside = back.movedim(2, 0).contiguous().movedim(0, 2)
    assert torch.equal(inverse_haar(aside, backend=form), inverse_haar(back, backend=form))
    assert haar(x[:0], form).shape == (0, 6, 4, 4, 5)
    assert inverse_haar(back[:0], backend=form).shape == (0, 6, 8, 10)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_as_close_as_it_can_be(dtype):
    x = maps(2, 3, 9, 8, dtype=dtype)
    bands = haar(x)
    assert bands.dtype == dtype
    step = 3 * torch.finfo(dtype).eps * x.abs().max().item() * 2
    assert (bands.double() - haar(x.double())).abs().max() < step
    assert (inverse_haar(bands, 9, 8).double() - x.double()).abs().max() < 2 * step


def test_autocast_leaves_the_precision_alone():
    x = maps(1, 2, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(haar(x), haar(x, "plain"))
        assert haar(x).dtype == torch.float32
        assert haar(x.bfloat16()).dtype == torch.bfloat16


def test_auto_takes_the_compiled_form_where_it_can(monkeypatch):
    assert running() == "numba"
    assert running("meta") == running("cuda") == "plain"
    ran = []
    monkeypatch.setattr(plain, "haar", lambda x: ran.append("plain"))
    monkeypatch.setattr(wavelet.operator, "haar_op", lambda x: ran.append("numba"))
    for x in (torch.ones(2, 2), torch.ones(2, 2).double(), torch.ones(2, 2).half()):
        haar(x)
    haar(torch.ones(2, 2, device="meta"))
    assert ran == ["numba", "numba", "plain", "plain"]


def test_without_numba_everything_works(monkeypatch):
    monkeypatch.setattr(wavelet, "installed", lambda name: False)
    x = maps(1, 2, 5, 6, dtype=torch.float32)
    assert running() == "plain"
    assert torch.equal(haar(x), haar(x, "plain"))
    assert torch.equal(inverse_haar(haar(x)), inverse_haar(haar(x), backend="plain"))
    with pytest.raises(zoo.BadInput, match=r"backend='numba' is not installed: pip install"):
        haar(x, "numba")


def test_forms_that_cannot_be():
    x = torch.ones(1, 1, 4, 4)
    for call in (haar, lambda x, form: inverse_haar(haar(x), backend=form)):
        with pytest.raises(zoo.BadInput, match="backend='conv': there are auto, plain, numba"):
            call(x, "conv")
        with pytest.raises(
            zoo.BadInput, match=r"float32 and float64 on a CPU, not on torch.float16"
        ):
            call(x.half(), "numba")


def test_importing_takes_no_compiler(python):
    check = "import sys, zoo.ops; sys.exit('numba' in sys.modules)"
    assert subprocess.run([*python, "-c", check], check=False).returncode == 0


class Wavelets(nn.Module):
    """There and back, and a second level."""

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
@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # says so of torch's GraphModule
@pytest.mark.parametrize("size", PROGRAM_SIZES)
@pytest.mark.parametrize("kind", ["script", "trace", "symbolic", "both"])
def test_programs_take_any_size(kind, size):
    program = {
        "script": lambda: torch.jit.script(Wavelets()),
        "trace": lambda: torch.jit.trace(Wavelets(), images((8, 12))),
        "symbolic": lambda: torch.fx.symbolic_trace(Wavelets()),
        "both": lambda: torch.jit.script(torch.fx.symbolic_trace(Wavelets())),
    }[kind]()
    assert same(program, images(size))


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


@pytest.mark.parametrize("strict", [False, True])
def test_exported_for_sides_of_a_multiple(strict):
    sides = {2: 4 * torch.export.Dim("h", min=2, max=9), 3: 4 * torch.export.Dim("w", min=2, max=9)}
    program = torch.export.export(
        Wavelets(), (images((8, 12)),), dynamic_shapes=(sides,), strict=strict
    ).module()
    assert all(same(program, images(size)) for size in [(8, 12), (16, 8), (36, 20)])


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_onnx(size, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    x, file = images(size), tmp_path / "haar.onnx"
    program = torch.onnx.export(Wavelets().eval(), (x,), dynamo=True, verbose=False)
    program.save(file)
    found = ort.InferenceSession(file).run(None, {"x": x.numpy()})
    for have, want in zip(found, Wavelets()(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(have), want)


def test_vmap_is_a_loop():
    x = maps(3, 2, 6, 8, dtype=torch.float32)
    assert torch.equal(torch.vmap(haar, in_dims=1)(x), haar(x.transpose(0, 1)))
    bands = haar(x)
    assert torch.equal(torch.vmap(inverse_haar)(bands), inverse_haar(bands))


@pytest.mark.parametrize("size", [(8, 12), (64, 32)])
def test_cost_is_three_operations_a_pixel(size):
    class Both(nn.Module):
        def forward(self, x):
            return inverse_haar(haar(x))

    pixels = 3 * size[0] * size[1]
    cost = zoo.count(Both(), (1, 3, *size))
    assert cost.macs == 0
    assert cost.flops == 2 * 3 * pixels


def test_fake_tensors_know_the_shape():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        bands = haar(torch.empty(2, 3, 7, 10))
        assert bands.shape == (2, 3, 4, 4, 5)
        assert inverse_haar(bands, 7).shape == (2, 3, 7, 10)
