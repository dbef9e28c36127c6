"""`train.sweep`: the settings of a command line as one run for each combination.

Hydra's grammar says what several values are: `a=1,2`, `a=range(3)`, `a=choice(x,y)` and, for
groups, `model=glob(simplenet*)`. Without any setting but those of the machine, a worker joins a
sweep.
"""

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override

from zoo.command_line import overrides
from zoo.command_line.keys import options
from zoo.errors import BadInput
from zoo.progress import phase

KEY = "train.sweep"
MOST_CELLS = 10_000


def is_sweep(words: Sequence[str]) -> bool:
    """Return whether the settings of `train` name the folder of a sweep."""
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == KEY]
    return bool(given) and given[-1] != "null"


def run(words: Sequence[str], parse: Callable[[Sequence[str]], tuple[Any, dict[str, Any]]]) -> Any:
    """Train the cells of a sweep, and return its folder.

    Args:
        words: Settings as on the command line.
        parse: Returns the settings of one run, and those that the user set.

    Raises:
        ZooError: A setting is invalid, or cells could not be trained.
    """
    parsed = _parse(words)
    with phase("train: loading PyTorch"):
        train = importlib.import_module("zoo.commands.train")
    joins = all(word.key_or_group in (KEY, *train.OF_A_MACHINE) for word in parsed)
    if joins:
        _, explicit = parse(words)
        of_machine = {key: value for key, value in explicit.items() if key in train.OF_A_MACHINE}
        return train.run_sweep(explicit[KEY], [], of_machine)
    runs = [part for one in combinations(words) for part in _folds(*parse(one))]
    of_machine = {
        key: value
        for key, value in runs[0][1].items()
        if key in train.OF_A_MACHINE and key != "data.root"
    }
    return train.run_sweep(runs[0][1][KEY], runs, of_machine)


def combinations(words: Sequence[str]) -> list[list[str]]:
    """Return the settings of each run, the last setting changing fastest.

    Args:
        words: Settings as on the command line.

    Raises:
        BadInput: A setting is invalid, or there are too many combinations.
    """
    parsed = _parse(words)
    choices = [[f"{word.get_key_element()}={value}" for value in _values(word)] for word in parsed]
    count = 1
    for values in choices:
        count *= len(values)
    if count > MOST_CELLS:
        raise BadInput(f"{count:,} combinations are too many for a sweep; give at most 10,000")
    return [list(one) for one in itertools.product(*choices)]


def _parse(words: Sequence[str]) -> list[Override]:
    parsed = [overrides.parse(word) for word in overrides.read("train", words, sweep=True)]
    folder = next(word for word in reversed(parsed) if word.key_or_group == KEY)
    if folder.is_sweep_override():
        raise BadInput(f"{folder.input_line}: a sweep is in one folder; give one path")
    return parsed


def _values(word: Override) -> list[str]:
    """Return the values of a setting as texts in Hydra's grammar."""
    if not word.is_sweep_override():
        return [word.get_value_element_as_str()]
    if not word.is_discrete_sweep():
        raise BadInput(
            f"{word.input_line}: an interval has no list of values; give values, such as"
            f" {word.key_or_group}=0.001,0.01, or use Hydra's Optuna sweeper"
        )
    value = word.value()
    if isinstance(value, Glob):
        found = value.filter(options(word.key_or_group))
    else:
        found = list(word.sweep_string_iterator())
    if not found:
        raise BadInput(f"{word.input_line}: no value fits; give at least one")
    return found


def _folds(settings: Any, explicit: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield a run for each fold if there are folds, and none was chosen; else the run itself."""
    folds = settings.data.folds
    if folds is None or settings.data.fold is not None:
        yield settings, explicit
        return
    for fold in range(folds):
        data = dataclasses.replace(settings.data, fold=fold)
        yield dataclasses.replace(settings, data=data), explicit | {"data.fold": fold}
