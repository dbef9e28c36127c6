"""The counts of whole models, compared with PyTorch's counter and with published figures."""

import pytest
import torch
from support import FINISHED, SMALLEST, inputs, quick, shaken
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tools import counts as stored_counts

COUNTS = stored_counts.read()
# Peers of four kinds; PyTorch's own counter knows matrix products, convolutions and attention.
PEERS = [
    f"timm/{name}"
    for name in ("vit_tiny_patch16_224", "mobilenetv4_conv_small", "fastvit_t8", "repvit_m0_9")
]


def macs_of_pytorch(model, size) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(size))
    counted = counter.get_flop_counts()["Global"]  # the operators of zoo have no MACs
    return sum(flops for op, flops in counted.items() if not str(op).startswith("zoo")) // 2


@pytest.mark.parametrize("name", SMALLEST)
def test_the_counter_of_pytorch_agrees_and_fused_models_cost_less(name):
    plain, size = shaken(name, **quick(name, 1)), (1, *inputs(name).shape[1:])
    fused = zoo.reparameterize(plain)
    before, after = (zoo.count(model, size) for model in (plain, fused))
    for model, counts in ((plain, before), (fused, after)):
        assert counts.macs == pytest.approx(macs_of_pytorch(model, size), rel=0.01)
    if name not in zoo.list_models(factored=True):  # a norm's shift may give a layer a bias
        assert after.params < 1.01 * before.params
    assert after.macs <= before.macs
    assert after.operators <= before.operators
    if name in zoo.list_models(reparam=True):
        assert after.flops < before.flops


@pytest.mark.parametrize("name", PEERS)
def test_the_counter_of_pytorch_agrees_on_models_of_timm(name):
    model, size = zoo.create_model(name).eval(), (1, 3, 224, 224)
    assert zoo.count(model, size).macs == pytest.approx(macs_of_pytorch(model, size), rel=0.01)


@pytest.mark.parametrize("name", FINISHED)
def test_published_macs_agree_unless_the_facts_explain_why_not(name):
    facts = zoo.model_info(name)
    rows = [row for row in facts["published"] if "macs_g" in row]
    if not rows:
        reasons = [row.get("why", {}).get("macs_g") for row in facts["published"]]
        assert any(reasons), "no published MACs, and no reason in the facts"
        return
    found = COUNTS[name]["macs"] / 1e9  # tests/test_catalogue.py compares these with the code
    for row in rows:
        if row.get("why", {}).get("macs_g"):
            continue
        assert found == pytest.approx(row["macs_g"], rel=0.01), row["source"]
