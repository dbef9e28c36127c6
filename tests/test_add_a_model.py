"""docs/add_a_model.md, followed to the letter in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "add_a_model.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
# Left to CI: the whole suite, the tools of `make lint` (ruff is run below), and minutes of timing.
NOT_HERE = ("make test", "make lint", "make results")
COPIED = ("zoo", "tests", "docs", "results", "configs")
NAMES = ("README.md", "pyproject.toml", "CHANGELOG.md", "Makefile")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the files of the page in their places."""
    place = tmp_path_factory.mktemp("project")
    for folder in COPIED:
        shutil.copytree(
            ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in (*NAMES, *(file.name for file in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, place / name)
    for name, content in FILES.items():
        assert not (place / name).exists(), f"{name} is there already"
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(content, encoding="utf-8")
    return place


def test_the_page_has_files_and_commands():
    assert {"zoo/models/pebble.py", "zoo/facts/pebble.yaml", "tests/models/test_pebble.py"} < set(
        FILES
    )
    assert set(NOT_HERE) < set(COMMANDS)
    assert "pebble" not in " ".join(path.name for path in (ROOT / "zoo").rglob("*"))


def test_following_it(copy, python):
    """In the order of the page: each command succeeds, and tests are selected where it says so."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    before = contents(copy)
    for command in COMMANDS:
        if command in NOT_HERE:
            continue
        words = shlex.split(command)
        assert words[0] == "python", command
        done = subprocess.run(
            [python[0], *words[1:]], cwd=copy, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        if "pytest" in words:
            assert re.search(r"[1-9]\d* passed", done.stdout), command
    after = contents(copy)
    changed = {name for name in after if after[name] != before.get(name)}
    expected = {"results/counts.json", "docs/models.md", "README.md"}
    expected |= {"tests/contract/keys/pebble.txt"}
    expected |= {"tests/reference/records/pebble_s.json"}
    assert changed == expected, "other files than those of the page's table"
    assert "| pebble_m |" in (copy / "docs/models.md").read_text(encoding="utf-8")


def contents(copy: Path) -> dict[str, bytes]:
    """Return what each file holds, caches aside."""
    files = (path for path in copy.rglob("*") if path.is_file())
    return {
        path.relative_to(copy).as_posix(): path.read_bytes()
        for path in files
        if not {"__pycache__", ".pytest_cache", ".ruff_cache"} & set(path.parts)
    }


def test_the_code_of_the_page_is_clean(copy, python):
    written = [name for name in FILES if name.endswith(".py") and not name.startswith("public/")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [python[0], "-m", "ruff", *check, *written], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
