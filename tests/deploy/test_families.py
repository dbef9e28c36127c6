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
    "lightm_unet_3d_8": (6, 4, 8),
    "wavemix_144_7_l1_cifar10": (18, 22),
    "wavemix_seg_192_16_l3_cityscapes": (96, 160),
    "wavemix_sisr_144_4_l1": (18, 22),
    "sret_t": (64, 96),
}
# Shallow forms: every kind of block, scan and head is in them.
SHALLOW = {
    "efficientvmamba_tiny": {"depths": (1, 0, 0, 1)},
    "lightm_unet_2d": {"blocks_down": (1, 1), "blocks_up": (1,), "init_filters": 8},
    "lightm_unet_3d_8": {"blocks_down": (1, 1), "blocks_up": (1,)},
    "wavemix_144_7_l1_cifar10": {"dim": 16, "depth": 2},
    "wavemix_seg_192_16_l3_cityscapes": {"dim": 16, "depth": 2},
    "wavemix_sisr_144_4_l1": {"dim": 16, "depth": 2},
}
# Families whose file is for any size, with the side that they are exported for. They have a
# position table, a last feature map of one position, windows, pooling to the size of another
# feature map, or scans. For one size, docs/export.md (tests/test_readme.py) exports scans, too.
DYNAMIC = {
    "cvt_2_4_32": 32,
    "lsnet_t": 64,
    "emo_1m": 64,
    "tiny_vit_5m_224": 64,
    "skipblocknet_m": 64,
    "efficientvmamba_tiny": 64,
    "lightm_unet_2d": 24,
}
STATIC = [name for name in SMALLEST if name not in DYNAMIC]


def shallow(name):
    return fresh(name, **SHALLOW.get(name, quick(name, 1)))


@pytest.mark.parametrize("name", STATIC)
def test_every_family_exports_to_plain_onnx(name, tmp_path):
    size, model = SIZES.get(name, (64, 96)), shallow(name)
    made = zoo.export(model, "onnx", tmp_path, input_size=(1, model.in_chans, *size))
    assert made.agreement.proven
    assert made.manifest["input"]["layout"] == ("NCHW" if len(size) == 2 else "NCDHW")
    # a batch that was neither traced nor compared
    check_outside_the_package(made, model, images(5, size, model.in_chans))


def check_outside_the_package(made, model, x):
    """Check what the runtime of an artefact computes from its file only."""
    if made.path.suffix == ".onnx":
        domains = {node.domain for node in onnx.load(made.path).graph.node}
        assert domains <= {"", "ai.onnx"}, "an operator that only this package defines"
    found = run_outside_the_package(made.path, x)
    with torch.no_grad():
        want = model(x).numpy()
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-3 * np.abs(want).max())


def run_outside_the_package(path, x):
    """Run an artefact with its runtime only."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        return torch.export.load(path).module()(x).numpy()


# As pt2 for any size: a table, one position, windows. A scan is in
# tests/ops/test_selective_scan_programs.py: exporting a model of scans takes a minute.
@pytest.mark.parametrize(
    ("name", "format", "batch"),
    [(name, "onnx", 5) for name in DYNAMIC]
    + [(name, "pt2", 1) for name in ("cvt_2_4_32", "lsnet_t", "emo_1m")],
)
def test_dynamic_sizes(name, format, batch, tmp_path):
    side, multiple = DYNAMIC[name], zoo.model_info(name)["input"].get("multiple", 1)
    model, origin = shallow(name), Origin(name)
    step = 2 if name == "lightm_unet_2d" else 1  # sides of the shallow form are multiples of 2
    options = {"input_size": (1, 3, side, side), "dynamic_batch": batch > 1, "dynamic_size": True}
    made = zoo.export(model, format, tmp_path, **options, origin=origin)
    assert made.agreement.proven
    assert made.manifest["input"]["multiple"] == multiple
    for size in ((side, side), (2 * side, side), (side // 2 + step, 3 * side)):
        check_outside_the_package(made, model, images(batch, size))


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
