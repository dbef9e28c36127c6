"""EEEA-Net: its cells against the public ones, what they read, and the gates."""

import json
from pathlib import Path

import pytest
import torch
from published import public_state
from records import compare_output, draw
from records import public_state as drawn_state
from support import difference, images, shaken

import zoo
from zoo.keys import rename
from zoo.models.eeea_net import GENOTYPES, PARTS, Cell, CellStage, FactorizedReduction
from zoo.reparam import randomize_parameters

OWN_LAYOUTS = ("eeea_c2",)  # blocks are numbered through all stages
NAME = "eeea_net_a_cifar"
CELLS = Path(__file__).parents[1] / "reference" / "cells"


@pytest.mark.parametrize(
    ("file", "genes"),
    [("eeea_cell_b_se", ("b", 0)), ("eeea_cell_c_se_reduce", ("c", 1))],
)
def test_a_gated_cell_is_that_of_the_public_code(file, genes):
    record = json.loads((CELLS / f"{file}.json").read_text())
    state = rename(drawn_state(record), PARTS)
    cell = Cell((48, 48), 32, GENOTYPES[genes[0]][genes[1]], reduction="reduce" in file, gated=True)
    cell.double().eval()
    own = cell.state_dict()
    cell.load_state_dict({key: value.reshape(own[key].shape) for key, value in state.items()})
    x = torch.from_numpy(draw("input", record["input"]))
    y = cell(x, x)
    assert compare_output(y, record["outputs"][0]) == []


def test_cells_read_the_two_before_them():
    model, x = shaken(NAME), images(2, (32, 36))
    reads = [stage.source for stage in model.stages if isinstance(stage, CellStage)]
    assert reads == [0, 0, *range(1, 19)]
    with torch.no_grad():
        before = y = model.stem(x)
        for stage in model.stages[1:]:
            before, y = y, stage.blocks[0](before, y)
        assert difference(model.forward_features(x), y) < 1e-5


def test_cells_that_halve_the_size():
    model = zoo.create_model(NAME, features_only=True)
    assert model.feature_info.reduction() == [1, 2, 4]
    assert model.feature_info.channels() == [72, 144, 288]
    cells = [stage.blocks[0] for stage in model.stages[1:]]
    factorized = [i for i, c in enumerate(cells) if isinstance(c.preprocess0, FactorizedReduction)]
    assert factorized == [7, 14]


def test_weights_of_gates_that_are_not_used_and_of_the_auxiliary_head_are_dropped():
    state = public_state(NAME)
    assert any(".nl_layer." in key for key in state)
    state["auxiliary_head.features.2.weight"] = torch.zeros(128, 288, 1, 1)
    assert zoo.load_weights(zoo.create_model(NAME), state) == []


def test_a_gated_network_has_the_weights_of_its_gates():
    model = zoo.create_model(NAME, gated=True, depth=3)
    names = {key.partition(".blocks.0.")[2] for key in model.state_dict()}
    assert {"se.reduce.weight", "se.expand.weight", "mix.local.conv.weight"} <= names
    assert "se.reduce.bias" not in names


def test_gates_are_fused():
    genes = GENOTYPES["c"][0]
    cell = Cell((6, 8), 16, genes, after_reduction=True, gated=True).double()
    randomize_parameters(cell).eval()
    before, x = images(2, (8, 8), 6), images(2, (4, 4), 8)  # small: a gated cell is cubic
    fused = zoo.reparameterize(cell, (0.1 * before.double(), 0.1 * x.double()))
    assert "BatchNorm" not in str(fused)
    with torch.no_grad():
        y = cell(0.1 * before.double(), 0.1 * x.double())
        assert difference(fused(0.1 * before.double(), 0.1 * x.double()), y) < 1e-9


@pytest.mark.parametrize(("name", "blocks"), [("eeea_c1", 13), ("eeea_c2", 19)])
def test_the_networks_for_imagenet(name, blocks):
    with torch.device("meta"):
        model = zoo.create_model(name)
    assert sum(len(stage.blocks) for stage in model.stages) == blocks
