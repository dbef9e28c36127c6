"""Saved checkpoints rely on the names and shapes of parameters.

The lists in `keys/` have them for the smallest variant of each family; of each task and number of
axes, if a family has several. A change breaks saved checkpoints: give the old names a key style,
then write the lists with `make family NAME=<family>`.
"""

from pathlib import Path

import pytest
from support import FINISHED, SMALLEST, shaken

import zoo
from tools import key_lists


@pytest.mark.parametrize("name", SMALLEST)
def test_names_and_shapes_are_those_of_the_list(name):
    assert key_lists.render(name, shaken(name)) == key_lists.file_of(name).read_text("utf-8")


@pytest.mark.parametrize("name", SMALLEST)
def test_names_are_uniform(name):
    for key in shaken(name).state_dict():
        assert key.startswith(("stem.", "stages.", "norm.", "decoder.", "head.")), key


def test_every_list_belongs_to_a_model():
    files = set(key_lists.FOLDER.glob("*.txt"))
    assert files == {key_lists.file_of(name) for name in SMALLEST}


def test_every_family_has_tests_of_its_own():
    folder = Path(__file__).parents[1] / "models"
    families = {zoo.model_info(name)["family"] for name in FINISHED}
    assert not [f for f in families if not (folder / f"test_{f}.py").is_file()]
