"""The cells of a sweep: one training run each, described by a file.

    <sweep>/cells/<setting>/<cell>/cell.json    the settings of the run
    <sweep>/cells/<setting>/<cell>/1.turn, ...  who trains it (zoo.sweeping.lease)
    <sweep>/runs/<setting>/<cell>/              the finished run, with result.json

A setting is named after its model and a hash of all settings that affect the result, a cell after
its seed and its fold. So equal runs have equal names on every machine, and no list of cells is
needed: a worker adds the cells that it was started with, unless they are there.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.settings import DataConfig, ModelConfig, TrainConfig
from zoo.training.disk import atomic_file

# Settings that a worker may choose for its machine: they do not change what is learnt. (`data.root`
# names the images, so it counts as a setting; a worker may say where they are on its machine.)
OF_A_MACHINE = (
    "data.root",
    "data.num_workers",
    "data.cache",
    "data.download",
    "train.accelerator",
    "train.loggers",
    "train.log_every",
    "train.progress",
)
_WITHOUT_EFFECT = {*OF_A_MACHINE, "train.out", "train.sweep", "train.resume"} - {"data.root"}
_REPEATED = ("train.seed", "data.fold")  # cells of one setting differ in these
RESULT = "result.json"


@dataclass(frozen=True, eq=False)
class Cell:
    """A training run of a sweep.

    Attributes:
        sweep: The folder of the sweep.
        settings: The groups `model`, `data` and `train` with all their settings.
        explicit: The settings that the user set.
    """

    sweep: Path
    settings: Mapping[str, Mapping[str, Any]]
    explicit: tuple[str, ...]

    @property
    def seed(self) -> int:
        """`train.seed`."""
        return self.settings["train"]["seed"]

    @property
    def fold(self) -> int | None:
        """`data.fold`."""
        return self.settings["data"].get("fold")

    @property
    def setting(self) -> str:
        """The name that cells share which differ only in their seed and fold."""
        values = {
            key: value
            for key, value in self.flat().items()
            if key not in _WITHOUT_EFFECT and key not in _REPEATED and value != _DEFAULTS.get(key)
        }
        text = json.dumps(values, sort_keys=True, ensure_ascii=True)
        model = str(self.settings["model"]["name"]).replace("/", "-")
        return f"{model}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def name(self) -> str:
        """The name among the cells of its setting."""
        return f"seed_{self.seed}" + ("" if self.fold is None else f"_fold_{self.fold}")

    @property
    def folder(self) -> Path:
        """The folder of the cell."""
        return self.sweep / "cells" / self.setting / self.name

    @property
    def finished(self) -> Path:
        """The folder of the finished run."""
        return self.sweep / "runs" / self.setting / self.name

    def flat(self) -> dict[str, Any]:
        """Return the settings with dotted keys."""
        return {
            f"{group}.{key}": value
            for group, values in self.settings.items()
            for key, value in values.items()
        }

    def is_finished(self) -> bool:
        """Return whether the run is there."""
        return (self.finished / RESULT).exists()

    def result(self) -> dict[str, Any]:
        """Return what the finished run ended with.

        Raises:
            BadInput: The file is damaged.
        """
        return _read(self.finished / RESULT, ("outcome", "metrics"))

    def add(self) -> bool:
        """Add the cell to its sweep; return whether it is new."""
        path = self.folder / "cell.json"
        if path.exists():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"settings": self.settings, "explicit": list(self.explicit)}
        with atomic_file(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True)
        return True


_DEFAULTS = {
    f"{group}.{key}": value
    for group, schema in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig))
    for key, value in dataclasses.asdict(schema()).items()
}


def cells_of(sweep: Path) -> list[Cell]:
    """Return the cells of a sweep, the first fold and seed of every setting first.

    Raises:
        BadInput: A file is damaged.
    """
    cells = []
    for path in sorted(sweep.glob("cells/*/*/cell.json")):
        content = _read(path, ("settings", "explicit"))
        cells.append(Cell(sweep, content["settings"], tuple(content["explicit"])))
        if cells[-1].folder != path.parent:
            raise BadInput(
                f"{path} does not describe the run of its folder: it was edited, or a version of"
                " this package with other settings wrote it; start a new sweep in another folder"
            )
    return sorted(cells, key=lambda cell: (cell.seed, cell.fold or 0, cell.setting))


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict) or not all(key in content for key in keys):
            raise ValueError
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is damaged; restore it, or delete its folder") from error
    return content
