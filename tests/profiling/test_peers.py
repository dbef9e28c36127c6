"""timm's models with recorded figures: the facts are timm's and ours, and commands show them."""

import pytest
from synthetic import record
from timm.models import get_pretrained_cfg

import zoo
from zoo import registry
from zoo.cli import execute as main
from zoo.inputs import published_input
from zoo.reports import figures
from zoo.reports.pareto import published

PEERS = [name for name in zoo.list_models(peers=True) if registry.is_timm(name)]
SMALL = "timm/mobilenetv4_conv_small_050.e3000_r224_in1k"


def test_weights_and_licences_are_those_of_timm():
    assert len(PEERS) >= 60
    for name in PEERS:
        cfg, (entry,) = (
            get_pretrained_cfg(name.removeprefix("timm/")),
            registry.get_spec(name).weights,
        )
        assert entry["url"] == f"hf:{cfg.hf_hub_id}/model.safetensors", name
        assert entry["licence"] == cfg.license, name
        assert f".{entry['tag']}" in name


def test_a_name_without_a_tag_has_facts_if_timm_loads_these_weights_for_it():
    for name in PEERS:
        bare, _, tag = name.removeprefix("timm/").partition(".")
        is_default = get_pretrained_cfg(bare).tag == tag
        untagged = registry.get_spec(f"timm/{bare}")
        same = untagged.facts is registry.get_spec(name).facts
        assert same == is_default, name


def test_counts_are_those_of_the_model():
    facts = zoo.model_info(SMALL)
    counts = zoo.count(zoo.create_model(SMALL).eval(), (1, 3, 224, 224))
    assert facts["params"] == counts.params
    assert facts["costs"][224] == [counts.macs, counts.moved_bytes]
    assert figures.of(SMALL).macs == counts.macs
    assert published_input(SMALL)["size"] == facts["input"]["size"]


def test_a_larger_image_costs_more_and_has_its_own_accuracy():
    for name in PEERS:
        facts = zoo.model_info(name)
        costs = [facts["costs"][side] for side in sorted(facts["costs"])]
        assert costs == sorted(costs), name
        assert all(60 < row["top1"] < 90 for row in facts["published"]), name


@pytest.mark.parametrize(("side", "top1"), [(224, 64.778), (256, 65.826), (320, 65.826)])
def test_a_record_has_the_accuracy_of_its_image_size_or_the_best_one(side, top1):
    found = published(record(model=SMALL, input_size=[1, 3, side, side]))
    assert found.top1 == top1
    assert found.size == ((side,) * 2 if side < 320 else (256, 256))
    assert f"{found.size[0]} pixels" in found.source
    assert published(record(model=SMALL, args={"num_classes": 10})) is None


def test_lists_show_peers_on_request(capsys):
    assert main(["list", "--peers", "--min-top1", "75", "--max-params", "6M", "--pretrained"]) == 0
    names = capsys.readouterr().out.split()
    assert "timm/repvit_m0_9.dist_450e_in1k" in names
    assert any(not registry.is_timm(name) for name in names)
    assert main(["list"]) == 0
    assert "timm/" not in capsys.readouterr().out


def test_one_page_shows_a_peer(capsys):
    assert main(["info", "timm/mobilenetv4_conv_small_050"]) == 0
    page = capsys.readouterr().out
    for text in ("2.24 M", "64.74 M", "top-1 64.778 %", "256 pixels", "apache-2.0"):
        assert text in page
