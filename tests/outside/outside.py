"""Run somebody else's tests in a process of their own and read what came of each."""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def checkout(request: pytest.FixtureRequest, suite: str, file: str, version: str) -> Path:
    """Return the checkout given for `suite`, or skip; a folder that is none is an error."""
    given = request.config.getoption(f"--{suite}-tests")
    if not given:
        pytest.skip(
            f"{suite}'s own tests need a checkout of version {version}: give --{suite}-tests FOLDER"
            f" or set ZOO_{suite.upper()}_TESTS"
        )
    folder = Path(given).expanduser().resolve()
    if folder.name == "tests":
        folder = folder.parent
    assert (folder / file).is_file(), f"--{suite}-tests: {folder} holds no {file}"
    return folder


def run(
    file: Path, markers: list[str], folder: Path, *arguments: str, **environment: str
) -> dict[str, str]:
    """Run pytest on `file` in the empty `folder`; return "passed" or the complaint of every test.

    The settings of this project do not apply there, nor do those of the other project.
    """
    lines = "".join(f"    {marker}\n" for marker in markers)
    (folder / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{lines}")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "--rootdir", "."]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # where this is set timm leaves tests out
    ours = {key: value for key, value in os.environ.items() if key != "GITHUB_ACTIONS"}
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, str(file), *arguments],
        cwd=folder,
        env={**ours, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert report.is_file(), f"nothing ran:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    results = {}
    for case in xml.parse(report).iter("testcase"):
        trouble = [part for part in case if part.tag in ("failure", "error", "skipped")]
        complaint = "; ".join(f"{part.tag}: {part.get('message')}" for part in trouble)
        results[case.get("name", "")] = complaint or "passed"
    return results
