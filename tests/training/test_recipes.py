"""Recipes, the training defaults of a data set: configs/recipe/<data>.yaml."""

import pytest
from omegaconf import OmegaConf

from zoo.command_line.composition import CONFIGS, compose
from zoo.settings import TrainConfig
from zoo.training.checks import check_train

RECIPES = sorted(path.stem for path in (CONFIGS / "recipe").glob("*.yaml"))


def changed(cfg):
    """Return the settings in `cfg.train` that differ from the defaults."""
    defaults = OmegaConf.to_container(OmegaConf.structured(TrainConfig))
    return {key: value for key, value in cfg.train.items() if value != defaults[key]}


@pytest.mark.parametrize("name", RECIPES)
def test_choosing_a_data_set_applies_its_recipe_and_changes_nothing_else(name):
    cfg = compose("train", [f"data={name}"])
    recipe = OmegaConf.load(CONFIGS / f"recipe/{name}.yaml")
    assert changed(cfg) == dict(recipe), "every line of a recipe changes a default"
    check_train(cfg.train)
    assert cfg.data == compose("eval", [f"data={name}"]).data


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_overrides_a_recipe(name):
    key, value = next(iter(OmegaConf.load(CONFIGS / f"recipe/{name}.yaml").items()))
    default = getattr(TrainConfig(), key)
    text = "null" if default is None else default
    cfg = compose("train", [f"train.{key}={text}", f"data={name}"])
    assert cfg.train[key] == default != value


def test_data_without_a_recipe_uses_the_defaults():
    assert "digits_segmentation" in RECIPES
    assert "digits" not in RECIPES
    assert changed(compose("train")) == changed(compose("train", ["data=voc"])) == {}
