"""Our models compute what the public implementations compute, from the same weights.

A record in `records/` was made by running a public model in float64 with weights drawn from the
names of its parameters; it holds digests of the outputs and the norm of every gradient. Here the
same weights go through `zoo.load_weights`, as a published file would.
"""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from records import against_noise, compare_output, draw, public_state
from support import FINISHED, tensors

import zoo
from zoo.keys import convert_keys

RECORDS = {file.stem: file for file in sorted((Path(__file__).parent / "records").glob("*.json"))}

# The public scans compute in single precision, whatever goes in: gradients keep five digits.
GRADIENT = 2e-5


def run(record, state):
    """Build our model, load `state`, and return it with its outputs for the record's input."""
    model = zoo.create_model(record["model"], **record["kwargs"]).double()
    zoo.load_weights(model, state)
    return model, tensors(model.eval()(torch.from_numpy(draw("input", record["input"]))))


def compare_outputs(outputs, record) -> list[str]:
    """Say how outputs, and the difference of those of two images, differ from the record."""
    if len(outputs) != len(record["outputs"]):
        return [f"{len(outputs)} outputs, expected {len(record['outputs'])}"]
    wrong = [
        f"output {i}: {line}"
        for i, (have, want) in enumerate(zip(outputs, record["outputs"], strict=True))
        for line in compare_output(have, want)
    ]
    if "contrast" in record:
        want = record["contrast"]  # of each output, or of the only one
        want = want[0] if isinstance(want, list) else want
        have = outputs[0][0] - outputs[0][1]
        for what, value in (("std", have.std(correction=0)), ("probe", against_noise(0, have))):
            if not abs(value.item() - want[what]) <= 1e-5 * want["std"]:
                wrong.append(f"image 0 minus image 1: {what} {value:.9g}, not {want[what]:.9g}")
    return wrong


def compare_gradients(model, outputs, state, record) -> list[str]:
    """Say which gradients differ from the record, parameter by parameter."""
    public = {tensor.data_ptr(): name for name, tensor in state.items()}
    if any(t.data_ptr() not in public for t in convert_keys(dict(state), model).values()):
        return compare_public_gradients(model, state, record)
    sum(against_noise(1, out) for out in outputs).backward()
    ours = dict(model.named_parameters())
    named = {}  # a shared parameter has several public names: the last one is taken, or the first
    for order in (state, dict(reversed(state.items()))):
        for key, tensor in convert_keys(order, model).items():
            named.setdefault(public[tensor.data_ptr()], key)
    wrong = []
    for name, want in record["grad_norm"].items():
        grad = ours[named[name]].grad if name in named else None  # a tensor without effect
        have = 0.0 if grad is None else grad.norm().item()
        if not abs(have - (want or 0.0)) <= GRADIENT * (want or 0.0) + 1e-12:
            wrong.append(f"gradient of {name}: {have:.9g}, expected {want:.9g}")
    return wrong


def compare_public_gradients(model, state, record) -> list[str]:
    """Say which gradients differ, for weights that are computed from the public ones.

    The public tensors require gradients, and the conversion is part of what is differentiated.
    """
    leaves = {
        name: tensor.clone().requires_grad_(name in record["grad_norm"])
        for name, tensor in state.items()
    }
    own, x = model.state_dict(), torch.from_numpy(draw("input", record["input"]))
    weights = {key: t.reshape(own[key].shape) for key, t in convert_keys(leaves, model).items()}
    outputs = tensors(torch.func.functional_call(model, weights, (x,)))
    sum(against_noise(1, out) for out in outputs).backward()
    wrong = []
    for name, want in record["grad_norm"].items():
        grad = leaves[name].grad
        have = 0.0 if grad is None else grad.norm().item()
        if not abs(have - (want or 0.0)) <= GRADIENT * (want or 0.0) + 1e-12:
            wrong.append(f"gradient of {name}: {have:.9g}, expected {want or 0.0:.9g}")
    return wrong


@functools.lru_cache(maxsize=1)  # their weights are large
def read(name):
    record = json.loads(RECORDS[name].read_text())
    return record, public_state(record)


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_met(name):
    record, state = read(name)
    model, outputs = run(record, state)
    if "setting" not in record:  # a supernet has more parameters than the network cut out of it
        shapes = {name: shape for name, shape, _ in record["state"]}
        dead = sum(math.prod(shapes[name]) for name in record.get("dead", []))
        ours = sum(p.numel() for p in model.parameters())
        assert ours in (record["params"], record["params"] - dead)
    assert compare_outputs(outputs, record) == []
    assert compare_gradients(model, outputs, state, record) == []


def first_pair(state):
    """Two convolution weights of equal shape."""
    seen = {}
    for name, tensor in state.items():
        if tensor.ndim == 4 and tuple(tensor.shape) in seen:
            return seen[tuple(tensor.shape)], name
        seen[tuple(tensor.shape)] = name
    raise AssertionError("no two weights of one shape")


@pytest.mark.parametrize("mistake", ["one value", "swapped", "other epsilon", "batch mixed"])
def test_the_check_fails_on_a_wrong_model(mistake, monkeypatch):
    record, state = read("efficientformer_l1_timm")
    state = dict(state)
    if mistake == "one value":
        name = next(name for name, tensor in state.items() if tensor.ndim == 4)
        state[name] = state[name].clone()
        state[name].view(-1)[0] += 0.01
    elif mistake == "swapped":
        a, b = first_pair(state)
        state[a], state[b] = state[b], state[a]
    elif mistake == "other epsilon":
        build = zoo.factory.create_model

        def off(*args, **kwargs):
            model = build(*args, **kwargs)
            model.stages[1].blocks[0].mlp.fc1.norm.eps = 1e-3
            return model

        monkeypatch.setattr(zoo, "create_model", off)
    outputs = run(record, state)[1]
    if mistake == "batch mixed":
        outputs = [outputs[0].roll(1, 0)]
    assert compare_outputs(outputs, record) != []


def test_the_gradient_check_fails_on_a_dead_parameter():
    record, state = read("efficientformer_l1_timm")
    model, outputs = run(record, state)
    model.head.fc.weight.requires_grad_(False)
    outputs = tensors(model(torch.from_numpy(draw("input", record["input"]))))
    assert any("head.weight" in line for line in compare_gradients(model, outputs, state, record))


def test_every_registered_family_has_a_record():
    models = [json.loads(file.read_text())["model"] for file in RECORDS.values()]
    proven = {zoo.model_info(model)["family"] for model in models}
    assert proven >= {zoo.model_info(name)["family"] for name in FINISHED}
