"""`zoo score`: ranks of untrained networks, its table, and what is refused."""

import pytest
import torch

import zoo
from zoo.cli import execute
from zoo.commands.score import ranks
from zoo.profiling.training_free import TrainingFreeScores, training_free_scores

NAMES = ["cct_2_3x2_32", "simplenet_cifar_310k"]


def test_the_table_has_the_scores_and_the_ranks(capsys):
    options = ["--size", "32", "--images", "2", "--repeats", "1"]
    assert execute(["score", *NAMES, *options]) == 0
    printed = capsys.readouterr().out
    score = zoo.score(NAMES[0], size=32, count=2, repeats=1)
    row = next(line for line in printed.splitlines() if NAMES[0] in line)
    assert f"{score.length_distortion:.4g}" in row
    assert f"{score.ntk_condition:.4g}" in row
    assert "rank" in printed


def test_images_can_be_given():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    have = zoo.score(NAMES[0], images, repeats=1, seed=3)
    assert have == training_free_scores(NAMES[0], images, repeats=1, seed=3)
    with pytest.raises(zoo.BadInput, match="size"):
        zoo.score(NAMES[0], images, size=32)


def test_ranks_add_the_places_of_both_scores():
    found = [TrainingFreeScores(*pair) for pair in ((3.0, 5.0), (9.0, 1.0), (4.0, 9.0))]
    assert ranks(found) == [2, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cct_2_3x2"], "cct_2_3x2_32"),
        ([NAMES[0], "--images", "1"], "at least 2 images"),
        ([NAMES[0], "--size", "32", "--images", "2", "--repeats", "0"], "repeats"),
        (["sparseformer_v1_tiny", "--size", "32", "--images", "2"], "not feature maps"),
    ],
)
def test_what_cannot_be_scored_is_refused(words, message, capsys):
    assert execute(["score", *words]) != 0
    assert message in capsys.readouterr().err
