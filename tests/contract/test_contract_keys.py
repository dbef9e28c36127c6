"""Names and shapes of parameters are a promise to whoever has saved weights.

The lists in `keys/` say them for the smallest variant of each family. A change breaks saved
checkpoints: give the old names a key style, then write the lists anew with

    pytest tests/contract/test_contract_keys.py --renew-keys
"""

from pathlib import Path

import pytest
from support import FINISHED, SMALLEST, shaken

import zoo

KEYS = Path(__file__).parent / "keys"


def listing(model) -> str:
    rows = (f"{key} {list(value.shape)}" for key, value in model.state_dict().items())
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", SMALLEST)
def test_names_and_shapes_are_those_of_the_list(name, request):
    file = KEYS / f"{zoo.model_info(name)['family']}.txt"
    text = f"# {name}\n{listing(shaken(name))}"
    if request.config.getoption("--renew-keys"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", SMALLEST)
def test_names_are_uniform(name):
    for key in shaken(name).state_dict():
        assert key.startswith(("stem.", "stages.", "norm.", "head.")), key


def test_every_list_belongs_to_a_family():
    families = {zoo.model_info(name)["family"] for name in SMALLEST}
    assert {file.stem for file in KEYS.glob("*.txt")} == families


def test_every_family_has_tests_of_its_own():
    folder = Path(__file__).parents[1] / "models"
    families = {zoo.model_info(name)["family"] for name in FINISHED}
    assert not [f for f in families if not (folder / f"test_{f}.py").is_file()]
