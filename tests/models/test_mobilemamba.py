"""MobileMamba: what its specification says beyond the contract."""

import pytest
import torch
from support import difference, fresh, images, shaken

import zoo
from zoo.models.mobilemamba import MobileMambaBlock, WaveletScan

# Published names that do not follow from the records: more blocks per stage.
OWN_LAYOUTS = ("mobilemamba_b*",)

# Channels that scan, are filtered, are left alone; stage by stage (arXiv 2411.15941, public code).
SPLITS = {
    "mobilemamba_t2": ((112, 28, 4), (192, 54, 26), (224, 110, 34)),
    "mobilemamba_t4": ((144, 32, 0), (256, 73, 39), (272, 134, 42)),
    "mobilemamba_s6": ((160, 32, 0), (272, 76, 36), (272, 134, 42)),
    "mobilemamba_b1": ((160, 40, 0), (256, 75, 45), (272, 134, 42)),
}
# Millions of parameters without the frozen wavelet filters that the public code counts too.
PARAMS = {"t2": 8.807, "t4": 14.138, "s6": 14.997, "b1": 17.071, "b2": 17.071, "b4": 17.071}


@pytest.mark.parametrize("name", SPLITS)
def test_channels_are_split_as_published(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    for stage, split in zip(model.stages, SPLITS[name], strict=True):
        mixer = stage.blocks[0].mixer.inner
        assert (mixer.scanned, mixer.filtered, mixer.kept) == split


@pytest.mark.parametrize("size", PARAMS)
def test_parameters(size):
    with torch.device("meta"):
        model = zoo.create_model(f"mobilemamba_{size}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == PARAMS[size]


@pytest.mark.parametrize("size", [(64, 64), (113, 80)])
def test_images_of_a_batch_do_not_mix(size):
    """The public fallback without CUDA adds the scans of all images."""
    model = shaken("mobilemamba_t2", torch.float64)
    x = images(3, size, dtype=torch.float64)
    with torch.no_grad():
        one_by_one = torch.cat([model(x[i : i + 1]) for i in range(3)])
        assert difference(model(x), one_by_one) < 1e-12


def test_a_fresh_block_doubles_its_input():
    """The outer skip stands around parts that are residual already, and start silent."""
    block = MobileMambaBlock(32, drop_path=0, global_ratio=0.5, local_ratio=0.25, kernel_size=3)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.zeros_(module.weight)
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(block.eval()(x), 2 * x)
    model = zoo.create_model("mobilemamba_t2").eval()
    x = torch.randn(1, 144, 4, 5)
    assert torch.equal(model.stages[0].blocks[0](x), 2 * x)


def test_wavelet_branch_alone_is_a_convolution_of_four_phases():
    """Haar, depthwise convolution, inverse Haar on an odd map, against the definition by hand."""
    torch.manual_seed(0)
    branch = WaveletScan(4, 3).double()
    branch.scan_scale.gamma.data.zero_()
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        y = branch.eval()(x)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    p, q = padded[..., 0::2, 0::2], padded[..., 0::2, 1::2]
    r, t = padded[..., 1::2, 0::2], padded[..., 1::2, 1::2]
    signs = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))  # LL LH HL HH
    bands = torch.stack([(a * p + b * q + c * r + d * t) / 2 for a, b, c, d in signs], dim=2)
    weight = branch.depthwise.weight * branch.depthwise_scale.gamma[:, None, None, None]
    bands = torch.nn.functional.conv2d(bands.flatten(1, 2), weight, padding=1, groups=16)
    bands = bands.unflatten(1, (4, 4))
    want = torch.zeros_like(padded)
    for k, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        want[..., row::2, column::2] = sum(signs[s][k] * bands[:, :, s] for s in range(4)) / 2
    torch.testing.assert_close(y, want[..., :5, :7])


def test_distilled_form_has_two_heads_and_returns_their_mean():
    model = fresh("mobilemamba_t2", distillation=True, num_classes=7)
    x = images(2)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        mean = (model.head.fc(pooled) + model.head.fc_dist(pooled)) / 2
        assert torch.equal(model(x), mean)
        assert difference(zoo.reparameterize(model)(x), mean) < 1e-4
    model.train().set_distilled_training(True)
    assert len(model(x)) == 2


def test_other_filters_than_haar_are_refused():
    model = zoo.create_model("mobilemamba_t2")
    key = "blocks1.0.mixer.m.attn.global_op.wt_filter"
    state = {"patch_embed.0.c.weight": torch.zeros(18, 3, 3, 3), key: torch.rand(448, 1, 2, 2)}
    with pytest.raises(zoo.BadWeights, match="wt_filter is not a filter of the Haar transform"):
        zoo.load_weights(model, state)


def test_half_precision_does_not_overflow_in_the_scan():
    """The scan runs in single precision, and its result stays there up to the norm."""
    model = zoo.create_model("mobilemamba_t2").eval()
    x = images(2) * 30
    with torch.no_grad():
        want = model(x)
        for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
            with torch.autocast("cpu", dtype=dtype):
                have = model(x).float()
            assert difference(have, want) < tolerance
