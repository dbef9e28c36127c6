"""docs/add_a_model.md, followed step by step in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
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
COPIED = ("zoo", "tools", "tests", "docs", "results", "configs")
NAMES = ("README.md", "pyproject.toml", "CHANGELOG.md", "Makefile", "constraints.txt")
MAKE = "make --no-print-directory -o .venv/installed"  # the environment is that of this test

# `make test` is the whole suite. The tests of one family are a command of the page; these are the
# tests over all families that are not repeated for each.
OVER_ALL_FAMILIES = (
    "tests/contract/test_contract_keys.py::test_every_list_belongs_to_a_model",
    "tests/contract/test_contract_keys.py::test_every_family_has_tests_of_its_own",
    "tests/deploy/test_capabilities.py::test_the_page_has_a_row_for_every_family",
    "tests/profiling/test_family_table.py::test_the_readme_has_all_families",
    "tests/test_catalogue.py::test_every_finished_model_has_current_counts",
    "tests/test_catalogue.py::test_counts_are_those_of_the_measurements",
    "tests/test_generated.py::test_every_generated_file_is_up_to_date",
    "tests/test_readme.py::test_figures_of_the_opening_are_true",
    "tests/test_readme.py::test_the_picture_shows_the_records",
    "tests/test_published_layouts.py::test_own_layouts_are_of_published_variants_of_the_family",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the files of the page added."""
    place = tmp_path_factory.mktemp("project")
    for folder in COPIED:
        shutil.copytree(
            ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in (*NAMES, *(file.name for file in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, place / name)
    (place / ".venv").symlink_to(sys.prefix)
    for name, content in FILES.items():
        assert not (place / name).exists(), f"{name} exists already"
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(content, encoding="utf-8")
    return place


def run(copy: Path, command: str) -> str:
    """Run a command in the copy, and return its output."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{copy / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command), cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_page_has_files_and_commands():
    written = {"zoo/models/pebble.py", "zoo/facts/pebble.yaml", "tests/models/test_pebble.py"}
    assert written < set(FILES)
    assert {"make family NAME=pebble", "make lint", "make test"} < set(COMMANDS)
    assert "pebble" not in " ".join(path.name for path in (ROOT / "zoo").rglob("*"))


def test_following_it(copy):
    """Each command succeeds in the order of the page, and the files of its table are written."""
    before = contents(copy)
    for command in COMMANDS:
        if command == "make test":
            run(copy, f"python -m pytest -n 0 {' '.join(OVER_ALL_FAMILIES)}")
        elif command == "make lint":
            lint_new_files(copy)
        else:
            output = run(copy, re.sub(r"^make\b", MAKE, command))
            if "pytest" in command:
                assert re.search(r"[1-9]\d* passed", output), command
    after = contents(copy)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        *("README.md", "docs/models.md", "docs/capabilities.md", "results/README.md"),
        *("results/counts.json", "zoo/facts/figures.json", "tests/contract/keys/pebble.txt"),
        "tests/reference/records/pebble_s.json",
    }
    for name in changed:
        listed = name.replace("pebble_s.json", "<record>.json").replace("pebble", "<family>")
        assert f"`{listed}`" in TEXT, f"{name} is not in the table of the page"
    assert "| pebble_m |" in after["docs/models.md"].decode()
    assert "| not measured | not measured |" in row(after["README.md"], "pebble")
    assert "| not measured |" in row(after["results/README.md"], "pebble_s")
    assert row(after["docs/capabilities.md"], "pebble_s") == "| pebble_s |" + " . |" * 7


def row(page: bytes, start: str) -> str:
    return next(line for line in page.decode().splitlines() if line.startswith(f"| {start} |"))


def contents(copy: Path) -> dict[str, bytes]:
    """Return the content of each file, except for caches."""
    files = (path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    return {
        file.as_posix(): (copy / file).read_bytes()
        for file in files
        if not any("cache" in folder or folder == ".venv" for folder in file.parts[:-1])
    }


def lint_new_files(copy: Path) -> None:
    """Run the commands of `make lint` on the files of the page, and the check of all pages."""
    files = [name for name in FILES if not name.startswith("public/")]
    code = " ".join(name for name in files if name.endswith(".py"))
    targets = {"ruff": code, "pyright": "zoo/models/pebble.py", "codespell": " ".join(files)}
    commands = run(copy, f"{MAKE} -n lint").splitlines()
    assert len(commands) >= 5
    for command in commands:
        tool = Path(command.split()[0]).name
        if tool == "check-jsonschema":  # of files that a new family does not touch
            continue
        run(copy, f"{command.removesuffix(' .')} {targets.get(tool, '')}")
