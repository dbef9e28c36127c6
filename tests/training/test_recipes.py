"""How train.py trains on a data set unless told otherwise: configs/recipe/<data>.yaml."""

import pytest
from omegaconf import OmegaConf

from zoo.cli import CONFIGS, compose
from zoo.settings import TrainConfig
from zoo.training.checks import check_train

RECIPES = sorted(path.stem for path in (CONFIGS / "recipe").glob("*.yaml"))


def changed(cfg):
    plain = OmegaConf.to_container(OmegaConf.structured(TrainConfig))
    return {key: value for key, value in cfg.train.items() if value != plain[key]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_with_its_data_and_changes_only_how_it_is_trained(name):
    cfg, written = (
        compose("train", [f"data={name}"]),
        OmegaConf.load(CONFIGS / f"recipe/{name}.yaml"),
    )
    assert changed(cfg) == dict(written), "every line changes something"
    check_train(cfg.train)
    assert cfg.data == compose("eval", [f"data={name}"]).data


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_stands_against_it(name):
    key, value = next(iter(OmegaConf.load(CONFIGS / f"recipe/{name}.yaml").items()))
    other = getattr(TrainConfig(), key)
    shown = "null" if other is None else other
    cfg = compose("train", [f"train.{key}={shown}", f"data={name}"])
    assert cfg.train[key] == other != value


def test_data_without_a_recipe_is_trained_by_the_defaults():
    assert "digits_segmentation" in RECIPES
    assert "digits" not in RECIPES
    assert changed(compose("train")) == changed(compose("train", ["data=voc"])) == {}
