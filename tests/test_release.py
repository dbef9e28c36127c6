"""What a release relies on: one version, imports that work on every system, and true workflows."""

import ast
import re
from pathlib import Path

import pytest
import yaml

import zoo

ROOT = Path(__file__).parents[1]
POSIX_ONLY = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty"}


def test_there_is_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == zoo.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version = \"", project, re.MULTILINE)


@pytest.mark.parametrize("package", ["zoo", "tools"])
def test_modules_of_posix_are_imported_behind_a_guard(package):
    """At the top of a module, only `try` or `if` may contain such an import."""
    unguarded = []
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                unguarded += [f"{file.name}: {name}" for name in POSIX_ONLY & {*names}]
    assert not unguarded


def test_the_workflows_name_files_that_exist():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (paths,) = re.findall(r"pytest --quick (.*)", text)
    assert [path for path in paths.split() if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"run: make (\w+)", text)
    assert {"lint", "test"} <= {*targets}
    assert all(f"\n{target}:" in makefile for target in targets)
