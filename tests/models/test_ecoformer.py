"""EcoFormer: conversion from PVT v2, fitting before training, public weights."""

import pytest
import torch
from published import public_state
from support import images, shaken

import zoo
from zoo.blocks.hashing import HashedAttention, HashNotFitted
from zoo.command_line.composition import run as run_command

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 20, 16))


def test_pvt_v2_is_converted():
    """Queries of the plain model become queries and keys; values and all else stay."""
    torch.manual_seed(0)
    plain = zoo.create_model("pvt_v2_b0", **SMALL, num_classes=3)
    model = zoo.create_model("ecoformer_pvtv2_b0", **SMALL, num_classes=3)
    assert zoo.load_weights(model, plain.state_dict()) == []
    before, after = plain.stages[0].blocks[0].mixer.attention, model.stages[0].blocks[0].mixer
    assert torch.equal(after.to_qk.weight, before.q.weight)
    assert torch.equal(after.to_v.bias, before.kv.bias[8:])
    last, own = plain.stages[3].blocks[0].mixer, model.stages[3].blocks[0].mixer
    assert torch.equal(own.qkv.weight, torch.cat([last.q.weight, last.kv.weight]))
    assert torch.equal(model.stages[2].norm.weight, plain.stages[2].norm.weight)
    assert not model.has_hash()


def test_a_model_is_trained_after_its_hash_is_fitted():
    model, x = zoo.create_model("ecoformer_pvtv2_b0", **SMALL), images(2, (64, 64))
    with pytest.raises(HashNotFitted):
        model.train()(x)
    model.fit_hash(x)
    assert model.has_hash()
    model(x).sum().backward()
    assert model.stages[0].blocks[0].mixer.to_qk.weight.grad.abs().max() > 0
    again = zoo.create_model("ecoformer_pvtv2_b0", **SMALL)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))
    again.train()(x)  # the hash is part of the weights


def test_train_fits_the_hash_before_the_first_step(tmp_path):
    settings = ["model=ecoformer_pvtv2_b0", "model.kwargs.depths=[1,1,1,1]", "data=digits"]
    settings += ["model.kwargs.dims=[8,16,20,16]", "data.image_size=32", "train.batch_size=4"]
    settings += ["train.limit_train_batches=1", "train.limit_val_batches=1", "train.epochs=1"]
    folder = run_command("train", [*settings, "train.loggers=[csv]", f"train.out={tmp_path}"])
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    tables = [value for key, value in state.items() if key.endswith(".hash")]
    assert len(tables) == 3
    assert all(table.any() for table in tables)


def test_public_weights_with_an_unused_table():
    state = public_state("ecoformer_pvtv2_b0")
    model = zoo.create_model("ecoformer_pvtv2_b0")
    assert zoo.load_weights(model, state) == []
    mixer = model.stages[1].blocks[0].mixer
    want = state["block2.0.attn.fast_attention.ksh.anchor"]
    assert torch.equal(mixer.anchors, want[0])
    assert torch.equal(mixer.hash, state["block2.0.attn.fast_attention.ksh.A"])


@pytest.mark.parametrize("name", ["ecoformer_pvtv2_b0", "ecoformer_twins_svt_s"])
def test_three_stages_are_hashed(name):
    stages = shaken(name).stages
    found = [any(isinstance(m, HashedAttention) for m in stage.modules()) for stage in stages]
    assert found == [True, True, True, False]
