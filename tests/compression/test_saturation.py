"""Sums of int8 products: exact on every processor, and found out where they would not be."""

import numpy as np
import onnx
import pytest
from nets import SIZE, Mixed, pictures
from onnx import numpy_helper

import zoo
from zoo.compression import saturation
from zoo.compression.int8_onnx import convert
from zoo.compression.recipe import Recipe
from zoo.deploy.spec import ExportSpec

OPEN = ExportSpec(SIZE, dynamic_batch=True)


def int8_file(folder):
    file = folder / "int8.onnx"
    convert(Mixed().eval(), file, OPEN, [pictures(32)], Recipe())
    return file


def full_range(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return the limits of plain int8 quantisation: the largest weight of each channel."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.abs(weight).max(axis=others)


def rows_of(file) -> list[np.ndarray]:
    """Return the int8 weights of convolutions and linear layers, one row per output channel."""
    graph = onnx.load(file).graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight = held.get(getattr(made.get(node.input[1]), "input", [""])[0])
            if weight is not None:
                turned = node.op_type == "MatMul"
                found.append((weight.T if turned else weight).reshape(len(weight.T if turned else
                             weight), -1).astype(np.int64))  # fmt: skip
    return found


def sums_without_vnni(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return products of bytes added as `vpmaddubsw` does: in pairs, in 16 bits."""
    products = rows * values
    products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
    pairs = products[:, ::2] + products[:, 1::2]
    return pairs.clip(-(2**15), 2**15 - 1).sum(axis=1)


def worst_values(row: np.ndarray) -> np.ndarray:
    """Return the bytes that make the pairs of a channel largest."""
    return np.where(row > 0, 255, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_files_are_exact_without_vnni(seed, tmp_path):
    """In any order of the weights, for random bytes and for the worst."""
    generator = np.random.default_rng(seed)
    layers = rows_of(int8_file(tmp_path))
    assert len(layers) == 5
    for rows in layers:
        rows = rows[:, generator.permutation(rows.shape[1])]
        for row in rows:
            random = generator.integers(0, 256, len(row))
            for values in (random, worst_values(row), worst_values(-row)):
                exact = (row * values).sum()
                assert sums_without_vnni(row[None], values)[0] == exact


def test_the_full_range_would_saturate_and_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saturation, "weight_limits", full_range)
    file = int8_file(tmp_path)
    wrong = [
        row
        for rows in rows_of(file)
        for row in rows
        if sums_without_vnni(row[None], worst_values(row)) != (row * worst_values(row)).sum()
    ]
    assert wrong
    found = saturation.check_file(file, [pictures(8)])
    assert found["largest_pair"] > 128
    assert 0 < found["could_saturate"] < found["sums"]
    with pytest.raises(zoo.NotExportable, match="would overflow on processors without VNNI"):
        saturation.refuse_unsafe("Mixed", found)


def test_the_check_finds_nothing_in_our_files(tmp_path):
    found = saturation.check_file(int8_file(tmp_path), [pictures(3), pictures(3)])
    assert (found["images"], found["could_saturate"]) == (4, 0)
    assert found["sums"] > 500
    saturation.refuse_unsafe("Mixed", found)


def test_limits_cost_no_more_than_they_must():
    one_large = np.array([[1.0, 0.0, -0.01, 0.0]])
    two_large = np.array([[1.0, 1.0, -1.0, 0.0]])
    assert 1 <= saturation.weight_limits(one_large, 0)[0] <= 1.125
    assert 2 <= saturation.weight_limits(two_large, 0)[0] <= 2.25
    assert saturation.weight_limits(np.zeros((2, 3)), 0).min() > 0
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((16, 3, 3, 3))
    limits = saturation.weight_limits(weight, 0)
    integers = np.round(weight / limits.reshape(-1, 1, 1, 1) * 127)
    assert saturation.largest_pair(integers) <= 128


def test_pairs_of_either_sign_count():
    assert saturation.largest_pair(np.array([[100, -100, 20], [5, -90, -30]])) == 120
    assert saturation.largest_pair(np.array([[100], [7]])) == 100
