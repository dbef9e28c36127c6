"""Once-for-All: the published networks by their texts, their names, and texts that are refused."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from published import public_state
from records import against_noise, compare_output, draw
from records import public_state as drawn_state
from support import images
from torch import nn

import zoo
from zoo.blocks.inverted_residual import InvertedResidual
from zoo.keys import convert_keys, misfits
from zoo.models.once_for_all import (
    SPACES,
    VARIANTS,
    Supernet,
    blocks_of,
    extract,
    parse_blocks,
)

SUPERNETS = Path(__file__).parents[1] / "reference" / "supernets"

OWN_LAYOUTS = ("ofa_*",)  # blocks are numbered through stages of any length
NAMES = zoo.list_models("ofa_*")


@functools.cache
def on_meta(name):
    with torch.device("meta"):
        return zoo.create_model(name)


def as_published(name, infix=".mobile_inverted_conv."):
    """Return tensors under public names, in the order of our parameters."""
    parts = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}
    proxyless = VARIANTS[name]["space"] == "proxyless"
    last = "feature_mix_layer" if proxyless else "final_expand_layer"
    counts, number = {}, -1
    public = {}
    for key, tensor in on_meta(name).state_dict().items():
        words = key.split(".")
        if words[0] == "stages":
            block = tuple(words[1:4:2])
            if block not in counts:
                counts[block] = number = number + 1
            inner = "depth_conv.se.fc" if words[4] == "gate" else parts[words[4]]
            start = f"blocks.{counts[block]}{infix}{inner}"
            end = ".".join(words[5:])
        else:
            start, end = {
                "stem": ("first_conv", ".".join(words[1:])),
                "norm": (last, ".".join(words[1:])),
                "head": (
                    "classifier.linear" if words[1] == "fc" else "feature_mix_layer.conv",
                    words[-1],
                ),
            }[words[0]]
        public[f"{start}.{end}".replace(".norm.", ".bn.")] = tensor
    return public


@pytest.mark.parametrize("name", NAMES)
def test_names_of_published_files(name):
    model = on_meta(name)
    assert misfits(convert_keys(as_published(name), model), model) == []


def test_the_names_tested_here_are_those_of_the_records():
    for name in ("ofa_note8_22", "ofa_tx2_35"):
        assert as_published(name, ".conv.").keys() == public_state(name).keys()


def test_the_searched_blocks():
    model = on_meta("ofa_note10_64")  # "33 36 33 / 54 36 33 53 / ..."
    first, second = model.stages[1].blocks[1], model.stages[2].blocks[0]
    assert first.depthwise.conv.kernel_size == (3, 3)
    assert first.depthwise.conv.out_channels == 6 * 32
    assert (second.depthwise.conv.kernel_size, second.depthwise.conv.stride) == ((5, 5), (2, 2))
    assert second.gate.reduce.out_channels == 32  # a quarter of 128
    assert [len(stage.blocks) for stage in model.stages] == [1, 3, 4, 4, 4, 4]
    acts = [type(stage.blocks[0].depthwise.act) for stage in model.stages]
    assert acts == [nn.ReLU] * 3 + [nn.Hardswish] * 3


@pytest.mark.parametrize(
    ("name", "eps", "first_residual"), [("ofa_lg_8", 1e-5, True), ("ofa_tx2_35", 1e-3, False)]
)
def test_the_two_spaces(name, eps, first_residual):
    model = on_meta(name)
    blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
    assert blocks[0].residual == first_residual
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {eps}


@pytest.mark.parametrize(
    "text", ["", "33", "33/33/33/33/34/", "43/33/33/33/33", "3/33/33/33/33", 7]
)
def test_texts_that_describe_no_network_are_refused(text):
    with pytest.raises(zoo.BadInput, match="^blocks="):
        parse_blocks(text, 5)


def test_an_unknown_space_is_refused():
    with pytest.raises(zoo.BadInput, match="mobilenetv3"), torch.device("meta"):
        zoo.create_model("ofa_lg_8", space="mobilenet")
    assert len(SPACES["proxyless"].dims) == 8


SMALL = "54 33 / 76 / 35 33 34 / 73 / 53"


@functools.lru_cache(maxsize=1)
def of_record(name):
    """Return a record, its weights, the supernet that has them, and the network of the record."""
    record = json.loads((SUPERNETS / f"{name}.json").read_text())
    state, setting = drawn_state(record), record["setting"]
    space = "proxyless" if "proxyless" in name else "mobilenetv3"
    supernet = Supernet(space, 1.3 if space == "proxyless" else 1.0).double().eval()
    assert zoo.load_weights(supernet, state) == []
    return record, state, supernet, blocks_of(setting["ks"], setting["e"], setting["d"], space)


@pytest.mark.parametrize("name", ["ofa_mbv3_w10", "ofa_proxyless_w13"])
def test_a_supernet_computes_what_the_public_one_does(name):
    record, state, supernet, blocks = of_record(name)
    assert sum(p.numel() for p in supernet.parameters()) == record["params"]
    x = torch.from_numpy(draw("input", record["input"]))
    supernet.zero_grad()
    y = supernet(x, blocks)
    assert compare_output(y, record["outputs"][0]) == []
    against_noise(1, y).backward()
    public = {tensor.data_ptr(): key for key, tensor in state.items()}
    names = {public[t.data_ptr()]: key for key, t in convert_keys(dict(state), supernet).items()}
    own = dict(supernet.named_parameters())
    for key, want in record["grad_norm"].items():
        grad = own[names[key]].grad
        norm = 0.0 if grad is None else grad.norm().item()
        assert norm == pytest.approx(want or 0.0, rel=2e-5, abs=1e-12), key
    network = extract(supernet, blocks)
    with torch.no_grad():
        assert (network(x) - y).abs().max() < 1e-10 * y.abs().max()
    ours = convert_keys(dict(extracted_shapes(record)), network)
    for key, tensor in network.state_dict().items():
        if tensor.ndim:
            assert ours[key].shape == tensor.shape
            mean, probe = ours[key].flatten()[:2].tolist()
            assert tensor.mean().item() == pytest.approx(mean, abs=1e-9), key
            assert against_noise(0, tensor).item() == pytest.approx(probe, abs=1e-7), key


def extracted_shapes(record):
    """Yield tensors of the network that the public code cut out; they start with mean and probe."""
    for key, (shape, mean, probe) in record["extracted"].items():
        if math.prod(shape) > 1:
            tensor = torch.zeros(shape, dtype=torch.float64)
            tensor.view(-1)[:2] = torch.tensor([mean, probe], dtype=torch.float64)
            yield key, tensor


def test_a_network_cut_out_is_a_backbone_of_its_own():
    torch.manual_seed(0)
    supernet = Supernet("mobilenetv3", 0.25, num_classes=3)
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    network = extract(supernet.eval(), SMALL)
    assert network.num_classes == 3
    assert [len(stage.blocks) for stage in network.stages] == [1, 2, 1, 3, 1, 1]
    batches = [images(4, (32, 32))]
    calibrated = zoo.recalibrate(network, batches, "once_for_all")
    assert not torch.equal(calibrated.stem.norm.running_mean, network.stem.norm.running_mean)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    after = supernet.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_training_a_network_trains_the_shared_weights():
    supernet = Supernet("mobilenetv3", 0.25, num_classes=3).train()
    supernet(images(4, (32, 32)), SMALL).square().sum().backward()
    block = supernet.largest.stages[1].blocks[0]
    assert block.expand.conv.weight.grad.any()
    assert supernet.transforms["1_0"].to5.grad.any(), "its kernel has five taps"
    assert supernet.transforms["1_0"].to3.grad is None
    assert supernet.largest.stages[1].blocks[2].expand.conv.weight.grad is None, "not taken"
    assert supernet.largest.stem.norm.running_mean.any(), "its statistics are followed"


@pytest.mark.parametrize(
    ("blocks", "message"),
    [("33 33 33 33 33 / 33 / 33 / 33 / 33", "stage 1 has 5 blocks, at most 4"), ("33", "give 5")],
)
def test_networks_beyond_the_supernet_are_refused(blocks, message):
    with pytest.raises(zoo.BadInput, match=message):
        extract(Supernet("mobilenetv3", 0.25), blocks)
