"""The run folder: create it, and write the settings and versions of the run."""

import datetime
import importlib.metadata
import os
import platform
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import BadInput
from zoo.training.disk import atomic_file

_PACKAGES = ("zoo-vision", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy")


class TrainedRun(type(Path())):  # pyright: ignore[reportUntypedBaseClass]
    """The folder of a run.

    Attributes:
        score: The best score of a validation: top-1, mean IoU, or PSNR in dB.
    """

    score: float

    def __new__(cls, folder: Path, score: float = float("nan")) -> "TrainedRun":
        return super().__new__(cls, folder)  # type: ignore[return-value]

    def __init__(self, folder: Path, score: float = float("nan")) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(folder)
        self.score = score


@dataclass(frozen=True)
class CellRun:
    """A run of a sweep, which one process trains alone.

    Attributes:
        folder: Where the run is while it is trained.
        command: The command that goes on with the sweep.
        is_lost: Returns whether another worker trains the run now, so that this one should stop.
    """

    folder: Path
    command: str
    is_lost: Callable[[], bool]


def check_writable(folder: str | Path, key: str) -> None:
    """Raise `BadInput` unless files can be created in `folder`; nothing is written.

    Args:
        folder: The folder, which need not exist.
        key: The setting that names it, for messages.
    """
    try:
        existing = Path(folder).expanduser().absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, ~nobody
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{key}={str(folder)[:80]!r}: {reason}; choose another path") from error
    if not existing.is_dir():
        raise BadInput(f"{key}={folder}: {existing} is not a folder; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"{key}={folder}: {existing} is not writable; choose another path")


def create(out: str | Path, model: str) -> Path:
    """Create a new folder `<out>/<date>_<time>_<model>_<suffix>` and return its path.

    Raises:
        BadInput: The folder cannot be created.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = f"{now}_{model.replace('/', '-')}_{secrets.token_hex(2)}"
    folder = Path(out).expanduser() / name
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise BadInput(
            f"train.out={str(out)[:80]}: the run folder {name} cannot be created"
            f" ({error.strerror}); choose another path"
        ) from error
    return folder


def describe(folder: Path, config: dict[str, Any]) -> None:
    """Write the resolved settings of the run and the versions of the packages."""
    config_text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    version_lines = [f"{name}: {version}\n" for name, version in versions().items()]
    for name, text in (("config", config_text), ("versions", "".join(version_lines))):
        with atomic_file(folder / f"{name}.yaml", "w", encoding="utf-8") as file:
            file.write(text)


def versions() -> dict[str, Any]:
    """Return the versions of Python, of the platform, and of packages that affect the results."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
