"""Once-for-All's ResNet-50D: supernet, networks cut out of it, published descriptions."""

import json
import re
from pathlib import Path

import pytest
import torch
from records import against_noise, compare_output, draw, public_state
from support import difference, images

import zoo
from zoo.keys import convert_keys, misfits
from zoo.models import ofa_resnet
from zoo.models.ofa_resnet import (
    ResNetSupernet,
    SearchedResNet,
    Setting,
    extract,
    from_config,
    from_state,
)
from zoo.reparam import randomize_parameters

RECORD = Path(__file__).parents[1] / "reference" / "supernets" / "ofa_resnet50.json"


def of_record():
    record = json.loads(RECORD.read_text())
    setting = record["setting"]
    return record, Setting(setting["d"], setting["e"], setting["w"])


@pytest.mark.slow
def test_the_supernet_computes_what_the_public_one_does():
    record, setting = of_record()
    state = public_state(record)
    supernet = ResNetSupernet().double().eval()
    assert zoo.load_weights(supernet, state) == []
    assert sum(p.numel() for p in supernet.parameters()) == record["params"]
    x = torch.from_numpy(draw("input", record["input"]))
    y = supernet(x, setting)
    assert compare_output(y, record["outputs"][0]) == []
    against_noise(1, y).backward()
    public = {tensor.data_ptr(): name for name, tensor in state.items()}
    names = {public[t.data_ptr()]: key for key, t in convert_keys(dict(state), supernet).items()}
    own = dict(supernet.named_parameters())
    for name, want in record["grad_norm"].items():
        grad = own[names[name]].grad
        have = 0.0 if grad is None else grad.norm().item()
        assert have == pytest.approx(want or 0.0, rel=2e-5, abs=1e-12), name
    network = extract(supernet, setting)
    assert sum(p.numel() for p in network.parameters()) == record["extracted_params"]
    with torch.no_grad():
        assert difference(network(x), y) < 1e-10


def test_shapes_are_those_of_the_record():
    record, setting = of_record()
    with torch.device("meta"):
        network = ofa_resnet.SearchedResNet(**setting.arguments())
    state = {
        key: torch.empty(shape, device="meta") for key, (shape, *_) in record["extracted"].items()
    }
    wrong = misfits(convert_keys(state, network), network)
    assert [line for line in wrong if "num_batches" not in line] == []


@pytest.fixture
def narrow(monkeypatch):
    """A supernet of a sixteenth of the widths."""
    monkeypatch.setattr(ofa_resnet, "STEM", 16)
    monkeypatch.setattr(ofa_resnet, "DIMS", (16, 32, 64, 128))
    return ResNetSupernet(num_classes=3)


SMALL = Setting((0, 1, 0, 2, 1), (0.2, 0.35, 0.25) * 6, (0, 1, 2, 0, 1, 2))


def test_a_network_is_cut_out_and_is_an_ordinary_backbone(narrow):
    supernet = randomize_parameters(narrow).eval()
    network, x = extract(supernet, SMALL), images(2, (33, 48))
    with torch.no_grad():
        assert difference(network(x), supernet(x, SMALL)) < 1e-6
        assert difference(zoo.reparameterize(network)(x), network(x)) < 1e-4
        maps = network.forward_intermediates(x, intermediates_only=True)
    assert [len(stage.blocks) for stage in network.stages] == [3, 2, 6, 3]
    assert [m.shape[2:] for m in maps] == [(9, 12), (5, 6), (3, 3), (2, 2)]


def test_gradients_reach_the_shared_weights_that_are_taken(narrow):
    narrow.train()(images(2, (64, 64)), SMALL).square().sum().backward()
    stage = narrow.largest.stages[1]
    assert stage.blocks[0].branch[0].conv.weight.grad.any()
    assert stage.blocks[3].branch[0].conv.weight.grad is None
    assert narrow.largest.stem.residual.inner.conv.weight.grad is None


@pytest.mark.parametrize(
    "change", [{"depths": (3, 0, 0, 0, 0)}, {"ratios": (0.2,)}, {"widths": (0,) * 5}]
)
def test_settings_beyond_the_space_are_refused(change):
    good = {"depths": (0,) * 5, "ratios": (0.2,) * 18, "widths": (0,) * 6}
    with pytest.raises(zoo.BadInput, match=next(iter(change))):
        Setting(**good | change)


def test_a_published_description_is_read():
    blocks = [
        {"stride": stride, "out_channels": out, "mid_channels": mid}
        for stride, out, mid in ((1, 16, 8), (1, 16, 4), (2, 24, 8), (2, 32, 8), (2, 40, 16))
    ]
    stem = [{"out_channels": 8}, {"name": "ResidualBlock"}, {"out_channels": 16}]
    config = {"input_stem": stem, "blocks": blocks, "classifier": {"out_features": 5}}
    network = from_config(config)
    assert [info["num_chs"] for info in network.feature_info] == [16, 24, 32, 40]
    assert network.stages[0].blocks[1].branch[0].conv.out_channels == 4
    public = {
        "input_stem.0.conv.weight": "stem.conv1.conv.weight",
        "input_stem.1.conv.bn.weight": "stem.residual.inner.norm.weight",
        "input_stem.2.bn.weight": "stem.conv2.norm.weight",
        "blocks.2.downsample.conv.weight": "stages.1.blocks.0.shortcut.1.conv.weight",
        "blocks.4.conv3.bn.bias": "stages.3.blocks.0.branch.2.norm.bias",
        "classifier.linear.weight": "head.fc.weight",
    }
    state = {name: network.state_dict()[key] for name, key in public.items()}
    assert list(convert_keys(state, network)) == list(public.values())
    with pytest.raises(zoo.BadInput, match=r"net\.config"):
        from_config({"blocks": []})


@pytest.mark.parametrize("residual", [False, True])
def test_a_published_network_is_built_from_its_weights_alone(residual):
    network = SearchedResNet(
        stem_dims=(8, 16), stem_residual=residual, dims=[16, 24, 32, 40],
        hidden=[[4, 8], [8], [8, 4, 4], [16]], num_classes=5,
    )  # fmt: skip
    randomize_parameters(network).eval()
    last, state = 1 + residual, {}
    numbers = {key: n for n, key in enumerate(["00", "01", "10", "20", "21", "22", "30"])}
    for key, tensor in network.state_dict().items():
        for pattern, new in (
            (r"^stem\.conv1", "input_stem.0"),
            (r"^stem\.residual\.inner", "input_stem.1.conv"),
            (r"^stem\.conv2", f"input_stem.{last}"),
            (r"^head\.fc", "classifier.linear"),
            (r"^stages\.(\d)\.blocks\.(\d)", lambda m: f"blocks.{numbers[m[1] + m[2]]}"),
            (r"branch\.(\d)", lambda m: f"conv{int(m[1]) + 1}"),
            (r"shortcut\.\d", "downsample"),
            (r"\.norm\.", ".bn."),
        ):
            key = re.sub(pattern, new, key)
        state[key] = tensor
    again, x = from_state(state), torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), network(x))
    del state["blocks.3.conv2.conv.weight"]
    for wrong in (state, {}, {"blocks.x": torch.zeros(1)}):
        with pytest.raises(zoo.BadInput, match="give the state dict of a file of Once-for-All"):
            from_state(wrong)
