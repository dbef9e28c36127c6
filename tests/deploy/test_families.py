"""ONNX files of every family, run by ONNX Runtime only, and files for any size."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support import SMALLEST, fresh, images, quick

import zoo
from zoo.deploy.manifest import Origin

# Scans and wavelets at sizes that are odd on some level, other families at small ones.
SIZES = {
    "mobilemamba_t2": (113, 80),
    "efficientvmamba_tiny": (92, 124),
    "lightm_unet_2d": (6, 10),
    "lightm_unet_3d_8": (6, 4, 8),
    "wavemix_144_7_l1_cifar10": (18, 22),
    "wavemix_seg_192_16_l3_cityscapes": (96, 160),
    "wavemix_sisr_144_4_l1": (18, 22),
    "kat_tiny_patch16_224": (224, 224),
    "sret_t": (64, 96),
}
# Shallow forms: every kind of block, scan and head is in them.
SHALLOW = {
    "lightm_unet_2d": {"blocks_down": (1, 1), "blocks_up": (1,)},
    "lightm_unet_3d_8": {"blocks_down": (1, 1), "blocks_up": (1,)},
    "wavemix_144_7_l1_cifar10": {"dim": 16, "depth": 2},
    "wavemix_seg_192_16_l3_cityscapes": {"dim": 16, "depth": 2},
    "wavemix_sisr_144_4_l1": {"dim": 16, "depth": 2},
}


def shallow(name):
    return fresh(name, **SHALLOW.get(name, quick(name, 1)))


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_exports_to_plain_onnx(name, tmp_path):
    size, model = SIZES.get(name, (64, 96)), shallow(name)
    made = zoo.export(model, "onnx", tmp_path, input_size=(1, model.in_chans, *size))
    assert made.agreement.proven
    assert made.manifest["input"]["layout"] == ("NCHW" if len(size) == 2 else "NCDHW")
    domains = {node.domain for node in onnx.load(made.path).graph.node}
    assert domains <= {"", "ai.onnx"}, (
        "the file contains an operator that only this package defines"
    )
    session = onnxruntime.InferenceSession(made.path)
    x = images(5, size, model.in_chans)  # a batch that was neither traced nor compared
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        want = model(x).numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-3 * np.abs(want).max())


# Side to export for, and what sides must be a multiple of. The models have a position table, a last
# feature map of one position, windows, pooling to the size of another feature map, or scans.
DYNAMIC = {
    "cvt_2_4_32": (32, 1),
    "lsnet_t": (64, 1),
    "emo_1m": (64, 1),
    "tiny_vit_5m_224": (64, 1),
    "skipblocknet_m": (64, 1),
    "efficientvmamba_tiny": (64, 1),
    "lightm_unet_2d": (24, 2),
}


def run_outside_the_package(path, x):
    """Run an artefact with its runtime only."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        return torch.export.load(path).module()(x).numpy()


# Exporting a scan as pt2 takes a minute: tests/ops/test_selective_scan_programs.py has one.
@pytest.mark.parametrize(
    ("name", "format", "batch"),
    [(name, "onnx", 5) for name in DYNAMIC]
    + [(name, "pt2", 1) for name in DYNAMIC if "mamba" not in name and "lightm" not in name],
)
def test_dynamic_sizes(name, format, batch, tmp_path):
    side, multiple = DYNAMIC[name]
    model = shallow(name)
    origin = Origin(name)
    options = {"input_size": (1, 3, side, side), "dynamic_batch": batch > 1, "dynamic_size": True}
    made = zoo.export(model, format, tmp_path, **options, origin=origin)
    assert made.agreement.proven
    assert made.manifest["input"]["multiple"] == zoo.model_info(name)["input"].get("multiple", 1)
    for size in ((side, side), (2 * side, side), (side // 2 + multiple, 3 * side)):
        x = images(batch, size)
        found = run_outside_the_package(made.path, x)
        with torch.no_grad():
            want = model(x).numpy()
        np.testing.assert_allclose(found, want, rtol=0, atol=2e-3 * np.abs(want).max())


def test_the_model_keeps_its_scans(tmp_path):
    model = shallow("lightm_unet_2d")
    zoo.export(model, "torchscript", tmp_path, input_size=(1, 3, 8, 8), fuse=False)
    used = {m.scan_backend for m in model.modules() if hasattr(m, "scan_backend")}
    assert used == {"auto"}


@pytest.mark.parametrize("size", [(1, 1, 16, 16), (1, 3, 16, 16, 16, 16)])
def test_volumes_need_five_axes(size, tmp_path):
    model = fresh("lightm_unet_3d_8")
    with pytest.raises(zoo.BadInput, match="five positive integers, B C D H W"):
        zoo.export(
            model, "onnx", tmp_path / "a", input_size=size, origin=Origin("lightm_unet_3d_8")
        )
