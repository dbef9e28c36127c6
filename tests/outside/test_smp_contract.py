"""Our models as encoders of segmentation_models_pytorch: its own tests, and whole networks."""

import importlib.metadata

import pytest
import segmentation_models_pytorch as smp
import torch
from outside import checkout, run
from support import CLASSIFIERS, PYRAMIDS, images, with_hashes

import zoo
import zoo.timm_bridge  # noqa: F401 -- the names "tu-zoo_..."

DECODERS = (
    "unet unetplusplus manet linknet fpn pspnet upernet segformer dpt".split()  # noqa: SIM905
)
# What smp takes: strides 2 or 4 to 32, each level half the size of the one before.
LADDERS = ([2, 4, 8, 16, 32], [4, 8, 16, 32])


def strides(name):
    with torch.device("meta"):
        return zoo.create_model(name, features_only=True).feature_info.reduction()


BRIDGED = [name for name in PYRAMIDS if name in CLASSIFIERS]
ENCODERS = [name for name in BRIDGED if strides(name) in LADDERS]
SIZE = (128, 160)

# Its base class asks for git only to see what changed; a copy outside a repository runs it all.
FILE = """
import sys
import types

if "git" not in sys.modules:
    git = types.ModuleType("git")

    def none(path):
        raise OSError("no repository")

    git.Repo = none
    sys.modules["git"] = git
sys.path.append({folder!r})

import zoo.timm_bridge
from tests.encoders import base


class TestOurs(base.BaseEncoderTester):
    encoder_names = [{encoder!r}]
    supports_dilated = {dilated!r}


del base
"""


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_test_of_smp_passes(name, request, tmp_path):
    installed = importlib.metadata.version("segmentation-models-pytorch")
    folder = checkout(request, "smp", "tests/encoders/base.py", installed)
    dilated = zoo.model_info(name)["capabilities"].get("output_stride", False)
    text = FILE.format(folder=str(folder), encoder=f"tu-zoo_{name}", dilated=dilated)
    (tmp_path / "test_ours.py").write_text(text)
    results = run(
        tmp_path / "test_ours.py",
        ["compile", "torch_export", "torch_script"],
        tmp_path,
        RUN_ALL="1",
    )
    assert {test: line for test, line in results.items() if line != "passed"} == {}
    assert results.keys() >= {
        "test_forward_backward",
        "test_in_channels",
        "test_depth",
        "test_invalid_depth",
        "test_dilated",
        "test_compile",
        "test_torch_export",
        "test_torch_script",
    }


# smp reads the first five levels; a pyramid that goes on beyond a ladder is a ladder to it.
OTHERS = [name for name in BRIDGED if not any(strides(name)[: len(x)] == x for x in LADDERS)]


@pytest.mark.parametrize("name", OTHERS)
def test_other_pyramids_are_refused_by_smp_not_misread(name):
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern|out_indices="):
        segmenter("unet", name)


def segmenter(decoder, name, **kwargs):
    return smp.create_model(decoder, f"tu-zoo_{name}", encoder_weights=None, classes=2, **kwargs)


def gradients(model):
    """Train a step; return the gradients of the encoder's parameters, none for those unused."""
    masks = model.train()(images(2, SIZE))
    assert masks.shape == (2, 2, *SIZE)
    assert masks.isfinite().all()
    masks.square().mean().backward()
    return [p.grad for p in model.encoder.parameters()]


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_train(decoder):
    kwargs = {"decoder_readout": "ignore"} if decoder == "dpt" else {}
    found = gradients(segmenter(decoder, "efficientformer_l1", **kwargs))
    used = [grad for grad in found if grad is not None]
    assert used
    assert all(grad.isfinite().all() for grad in used)
    if decoder not in ("pspnet", "dpt"):  # these leave levels out
        assert len(used) == len(found)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_unet_on_every_family(name):
    found = gradients(with_hashes(segmenter("unet", name)))
    assert all(grad is not None and grad.isfinite().all() for grad in found)


@pytest.mark.parametrize("name", ENCODERS)
def test_dilated_decoders_work_or_say_why_not(name):
    if zoo.model_info(name)["capabilities"].get("output_stride", False):
        model = segmenter("deeplabv3plus", name).eval()
        with torch.no_grad():
            assert model(images(1, SIZE)).shape == (1, 2, *SIZE)
    else:
        with pytest.raises(ValueError, match="unknown argument 'output_stride'"):
            segmenter("deeplabv3plus", name)
