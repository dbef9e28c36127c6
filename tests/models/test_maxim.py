"""MAXIM: equal to the public JAX code, its npz files, partitions, sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from records import against_noise, compare_output, draw, public_state

import zoo
from zoo.blocks.multiaxis import CrossGating, from_blocks, from_grid, to_blocks, to_grid
from zoo.keys import convert_keys, misfits
from zoo.models.maxim import Maxim, resized

RECORD = Path(__file__).parents[1] / "reference" / "jax" / "maxim_s1.json"
SMALL = dict(stages=2, features=4, groups=1, bottlenecks=1)


def test_outputs_and_gradients_are_those_of_the_public_code():
    record = json.loads(RECORD.read_text())
    model = zoo.create_model("maxim_s1").double().eval()
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    state = {key: value.requires_grad_() for key, value in public_state(record).items()}
    weights = convert_keys(dict(state), model)
    assert misfits(weights, model) == []
    x = torch.from_numpy(draw("input", record["input"])).permute(0, 3, 1, 2)

    class Restore(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.restore(x)[0]

    own = {f"model.{key}": value for key, value in weights.items()}
    outputs = torch.func.functional_call(Restore(), own, (x,))
    outputs = [y.permute(0, 2, 3, 1).contiguous() for y in outputs]
    for have, want in zip(outputs, record["outputs"], strict=True):
        assert compare_output(have, want) == []
    sum(against_noise(1, y) for y in outputs).backward()
    for key, want in record["grad_norm"].items():
        assert state[key].grad.norm().item() == pytest.approx(want, rel=2e-5, abs=1e-12), key


def test_a_published_npz_file_is_read(tmp_path):
    """Arrays have the names of the optimizer's target; nothing in the file is executed."""
    record = json.loads(RECORD.read_text())
    arrays = {
        f"opt/target/{key}": np.full(shape, 0.5, np.float32) for key, shape, _ in record["state"]
    }
    np.savez(tmp_path / "checkpoint.npz", **arrays)
    model = zoo.create_model("maxim_s1")
    assert zoo.load_weights(model, tmp_path / "checkpoint.npz") == []
    assert all((p == 0.5).all() for p in model.parameters())


def test_blocks_and_grid_are_inverses_and_mix_other_positions():
    x = torch.arange(64.0).view(1, 8, 8, 1)
    blocks, grid = to_blocks(x, 4), to_grid(x, 4)
    assert torch.equal(from_blocks(blocks, 4, 8, 8), x)
    assert torch.equal(from_grid(grid, 4, 8, 8), x)
    assert blocks[0, 0, :5, 0].tolist() == [0, 1, 2, 3, 8]
    assert grid[0, 0, :5, 0].tolist() == [0, 2, 4, 6, 16]


def test_smaller_images_start_at_the_second_or_third_pixel():
    seen = []
    model = Maxim(**SMALL | {"stages": 1}).eval()
    model.stages[0].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    x = torch.arange(64.0).expand(1, 3, 64, 64)
    with torch.no_grad():
        model(x)
    assert [image[0, 0, :2, 0].tolist() for image in seen] == [[0, 1], [1, 3], [2, 6]]


def test_shrinking_is_anti_aliased_and_growing_is_not():
    x = torch.rand(1, 8, 8, 2)
    small = resized(x, -1)[0, 2, 2]
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    torch.testing.assert_close(small, torch.einsum("i,j,ijc->c", taps, taps, x[0, 3:7, 3:7]))
    want = torch.nn.functional.interpolate(
        x.permute(0, 3, 1, 2), scale_factor=2.0, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(resized(x, 1), want.permute(0, 2, 3, 1))


def test_the_second_stage_reads_the_first():
    torch.manual_seed(0)
    model, x = Maxim(**SMALL), torch.rand(1, 3, 64, 128)
    stages = model.restore(x)
    assert [[tuple(y.shape[2:]) for y in stage] for stage in stages] == [
        [(16, 32), (32, 64), (64, 128)]
    ] * 2
    stages[-1][-1].sum().backward()
    assert model.stages[0].outputs[0].conv1.weight.grad is not None
    gates = [m for m in model.stages[1].modules() if isinstance(m, CrossGating)]
    assert len(gates) == 3 + 3 + 3


def test_public_names_of_two_stages():
    with torch.device("meta"):
        model = zoo.create_model("maxim_s2")
    names = {
        "stage_1_input_fuse_sam_2/SplitHeadMultiAxisGating_y/Dense_1/kernel": (
            "stages.1.fuses.2.gating_y.block.weight"
        ),
        "stage_0_supervised_attention_module_1/Conv_2/bias": "stages.0.outputs.1.conv3.bias",
        "stage_1_encoder_block_1/cross_gating_block/LayerNorm_x/scale": (
            "stages.1.encoders.1.gate.norm_x.weight"
        ),
        "UpSampleRatio_30/Conv_0/bias": "stages.1.resizes2.3.bias",
        "stage_0_input_conv_0/kernel": "stages.0.inputs.0.weight",
    }
    state = {key: torch.empty(2, 2) for key in names}
    state["stage_0_input_conv_0/kernel"] = torch.empty(3, 3, 3, 32)
    assert list(convert_keys(state, model)) == list(names.values())
    assert sum(p.numel() for p in model.parameters()) == zoo.model_info("maxim_s2")["params"]


def test_sides_must_be_multiples_of_64():
    with pytest.raises(zoo.BadInput, match="multiple of 64"):
        Maxim(**SMALL)(torch.rand(1, 3, 32, 64))
