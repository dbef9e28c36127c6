"""Names and shapes of parameters are a promise to whoever has saved weights.

The lists in `keys/` say them for the smallest variant of each family; of each task and number of
axes, if the family has several. A change breaks saved checkpoints: give the old names a key style,
then write the lists anew with

    pytest tests/contract/test_contract_keys.py --renew-keys
"""

from pathlib import Path

import pytest
from support import FINISHED, SMALLEST, axes, shaken

import zoo

KEYS = Path(__file__).parent / "keys"


def list_of(name):
    facts = zoo.model_info(name)
    others = [n for n in SMALLEST if zoo.model_info(n)["family"] == facts["family"]]
    words = [facts["family"]]
    if len({zoo.model_info(n)["task"] for n in others}) > 1:
        words.append(facts["task"])
    if len({axes(n) for n in others}) > 1:
        words.append(f"{axes(name)}d")
    return KEYS / f"{'-'.join(words)}.txt"


def listing(model) -> str:
    rows = (f"{key} {list(value.shape)}" for key, value in model.state_dict().items())
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", SMALLEST)
def test_names_and_shapes_are_those_of_the_list(name, request):
    file = list_of(name)
    text = f"# {name}\n{listing(shaken(name))}"
    if request.config.getoption("--renew-keys"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", SMALLEST)
def test_names_are_uniform(name):
    for key in shaken(name).state_dict():
        assert key.startswith(("stem.", "stages.", "norm.", "decoder.", "head.")), key


def test_every_list_belongs_to_a_model():
    assert set(KEYS.glob("*.txt")) == {list_of(name) for name in SMALLEST}


def test_every_family_has_tests_of_its_own():
    folder = Path(__file__).parents[1] / "models"
    families = {zoo.model_info(name)["family"] for name in FINISHED}
    assert not [f for f in families if not (folder / f"test_{f}.py").is_file()]
