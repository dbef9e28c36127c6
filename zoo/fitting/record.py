"""`fit.json`: what each step of `zoo fit` found, so that a killed command continues."""

import json
from pathlib import Path
from typing import Any

from zoo.errors import BadInput, first_line
from zoo.reports.writing import replace_files

NAME = "fit.json"
KIND = "zoo fit 1"  # the kind and the version of the file
STEPS = ("inspect", "choose", "train", "export", "int8", "evaluate", "labels")


class FitRecord:
    """The finished steps of a command in a folder.

    Attributes:
        folder: The folder of the command.
        steps: What each finished step found, as plain values.

    Args:
        folder: Created if it does not exist.
        request: What the user gave, as plain values.

    Raises:
        BadInput: The folder has the record of a command with other arguments, or a damaged one.
    """

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        self.folder, self.request = folder, request
        self.steps: dict[str, Any] = {}
        path = folder / NAME
        if path.is_file():
            self.steps = self._read(path)
        folder.mkdir(parents=True, exist_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(
                f"{path} cannot be read ({first_line(error)}); give another --out"
            ) from error
        is_record = isinstance(content, dict) and content.get("kind") == KIND
        if not is_record or not isinstance(content.get("steps"), dict):
            raise BadInput(f"{path} is not a record of `zoo fit`; give another --out")
        before = content.get("request")
        if before != self.request:
            old = before if isinstance(before, dict) else {}
            key = next(
                key for key in {**old, **self.request} if old.get(key) != self.request.get(key)
            )
            raise BadInput(
                f"--out {self.folder} has a run with {key}={old.get(key)}, not"
                f" {self.request.get(key)}; repeat its arguments to continue it, or give another"
                " --out"
            )
        steps = content["steps"]
        done = [name for name in STEPS if name in steps]
        if list(steps) != list(STEPS[: len(done)]):
            raise BadInput(f"{path} is damaged: its steps are {list(steps)}; give another --out")
        return steps

    def add(self, step: str, found: Any) -> None:
        """Add a finished step, and write the file atomically.

        Raises:
            BadInput: The file cannot be written.
        """
        self.steps[step] = found
        content = {"kind": KIND, "request": self.request, "steps": self.steps}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        replace_files({self.folder / NAME: text})
