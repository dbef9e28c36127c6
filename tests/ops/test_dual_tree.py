"""The dual-tree transform: filters, reconstruction, edges, orientations, gradients."""

import math

import pytest
import torch
from torch.nn.functional import pad

from zoo.ops.wavelet.complex import analyse, extend, filters, synthesise


def dual_tree(x):
    low, bands = analyse(x, filters()[0].to(x))
    return low, bands.unflatten(0, x.shape[:2])


def inverse_dual_tree(low, bands):
    return synthesise(low, bands.flatten(0, 1), filters()[1].to(low))


def image(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_filters():
    (low, high), (back_low, back_high) = (f.double() for f in filters())
    assert low.sum().item() == pytest.approx(1, abs=1e-6)
    assert high.sum().item() == pytest.approx(0, abs=1e-6)
    for taps in (low, high, back_low, back_high):
        assert torch.equal(taps, taps.flip(0))
    assert (low != 0).nonzero().min() == 3, "13 taps"
    assert (high != 0).sum() == 17, "19 taps, of which two are 0"
    # Perfect reconstruction: analysis followed by synthesis is a single tap.
    whole = convolved(low, back_low) + convolved(high, back_high)
    expected = torch.zeros(37, dtype=torch.float64)
    expected[18] = 1
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)


def convolved(a, b):
    return torch.nn.functional.conv1d(pad(a[None, None], (18, 18)), b.flip(0)[None, None])[0, 0]


@pytest.mark.parametrize("size", [(56, 56), (10, 24), (2, 6)])
def test_synthesis_inverts_analysis(size):
    x = image(2, 3, *size)
    low, bands = dual_tree(x)
    assert low.shape == x.shape
    assert bands.shape == (2, 3, 2, 6, size[0] // 2, size[1] // 2)
    torch.testing.assert_close(inverse_dual_tree(low, bands), x, atol=3e-6, rtol=0)


def test_single_precision():
    x = image(1, 2, 24, 24).float()
    assert (inverse_dual_tree(*dual_tree(x)) - x).abs().max() < 1e-5


def test_edges_are_extended_with_the_edge_sample_repeated():
    x = torch.arange(3.0)[None, None, None]
    expected = [2, 1, 0, 0, 1, 2, 2, 1, 0]
    assert extend(x, -1, 3)[0, 0, 0].tolist() == expected
    assert extend(x, -1, 9)[0, 0, 0, 6:15].tolist() == expected


def test_a_constant_is_only_in_the_low_band():
    low, bands = dual_tree(torch.full((1, 1, 12, 16), 3.0, dtype=torch.float64))
    torch.testing.assert_close(low, torch.full_like(low, 3.0), atol=1e-6, rtol=0)
    assert bands.abs().max() < 1e-5


def test_values_match_the_formula():
    x = image(1, 1, 12, 12)[0, 0]
    (h0, h1), _ = (f.double() for f in filters())

    def along(y, taps, axis):
        y = extend(y[None, None], axis, 9)[0, 0].unfold(axis, 19, 1)
        return y @ taps

    low, high = along(x, h0, -1), along(x, h1, -1)
    ll, lh, hl, hh = (along(y, h, -2) for y in (low, high) for h in (h0, h1))
    found, bands = dual_tree(x[None, None])
    torch.testing.assert_close(found[0, 0], ll)
    order = {"15": (lh, 1), "45": (hh, 1), "75": (hl, 1), "105": (hl, 2), "135": (hh, 2)}
    for i, (y, kind) in enumerate([*order.values(), (lh, 2)]):
        a, b, c, d = y[0::2, 0::2], y[0::2, 1::2], y[1::2, 0::2], y[1::2, 1::2]
        expected = (a - d, b + c) if kind == 1 else (a + d, b - c)
        for part in range(2):
            torch.testing.assert_close(bands[0, 0, part, i], expected[part] / math.sqrt(2))


@pytest.mark.parametrize("angle", range(6))
def test_bands_distinguish_a_direction_from_its_mirror_image(angle):
    """Unlike a real wavelet transform: 15, 45 and 75 degrees differ from 165, 135 and 105."""
    degrees = math.radians(15 + 30 * angle)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = torch.cos(2.2 * (x * math.sin(degrees) + y * math.cos(degrees)))

    def energies(wave):
        inner = dual_tree(wave[None, None])[1][0, 0, :, :, 8:-8, 8:-8]
        return inner.square().sum(0).mean((1, 2))

    found, mirrored = energies(wave), energies(wave.flip(1))
    first, second = found[:3].sum(), found[3:].sum()
    assert max(first, second) > (1e3 if angle % 3 == 1 else 2) * min(first, second)
    assert (first > second) == (mirrored[:3].sum() < mirrored[3:].sum())
    if angle % 3 != 1:  # diagonal waves are weaker in their own band
        assert found.argmax() == 5 - mirrored.argmax()


def test_gradients():
    x = image(1, 1, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dual_tree(x), (x,))
    low, bands = (t.detach().requires_grad_() for t in dual_tree(x))
    assert torch.autograd.gradcheck(inverse_dual_tree, (low, bands))
