"""Published accuracy of records, and the Pareto front."""

import random

import pytest
from synthetic import record

import zoo
from zoo.reports.pareto import front, published


def test_a_known_front():
    points = [(1, 70), (2, 75), (3, 74), (4, 80), (4, 79), (5, 80), (2, 75)]
    assert front(points) == [True, True, False, True, False, False, True]
    assert front([]) == []


def test_points_on_the_front_are_dominated_by_no_point():
    generator = random.Random(0)
    points = [(generator.randrange(20), generator.randrange(20)) for _ in range(200)]
    for (x, y), chosen in zip(points, front(points), strict=True):
        dominated = any((a <= x and b > y) or (a < x and b >= y) for a, b in points)
        assert chosen is not dominated


def test_the_best_published_accuracy_is_used_with_its_source_and_size():
    entries = zoo.model_info("efficientformer_l1")["published"]
    found = published(record(model="efficientformer_l1"))
    assert found.top1 == max(entry["top1"] for entry in entries)
    assert found.source in [entry["source"] for entry in entries]
    assert found.size == (224, 224)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "unknown"},
        {"model": "timm/resnet101"},
        {"model": "lightm_unet_2d"},
        {"model": "wavemix_144_7_l1_cifar10"},
        {"model": "efficientformer_l1", "args": {"num_classes": 10}},
        {"model": "efficientformer_l1", "args": {"in_chans": 1}},
    ],
)
def test_records_without_a_comparable_accuracy(changes):
    assert published(record(**changes)) is None


def test_arguments_that_do_not_affect_the_accuracy():
    assert published(record(model="efficientformer_l1", args={"pretrained": True})) is not None


def test_a_model_of_timm_that_is_also_ours_has_the_figure_of_its_weights():
    found = published(record(model="timm/mobilenetv2_100"))
    entries = zoo.model_info("mobilenetv2_100")["published"]
    (stated,) = [e["top1"] for e in entries if "top1" in e and e["source"].startswith("timm ")]
    assert (found.top1, found.size) == (stated, (224, 224))
