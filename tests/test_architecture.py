"""docs/architecture.md: its names exist, and its diagram is the import graph of the package."""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
LAYERS = [
    {name.strip() for name in re.split(r"[|:]", layer)}
    for layer in CONTRACT["contracts"][0]["layers"]
]
LOWEST = next(number for number, layer in enumerate(LAYERS) if "facts" in layer)
BASE = set().union(*LAYERS[LOWEST:])  # left out of the diagram
NAMES = set().union(*LAYERS)

DIAGRAM = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)[1]
ARROWS = {(a, b) for a, b in re.findall(r"(\w+) --> (\w+)", DIAGRAM)}
DOTTED = {(a, b) for a, b in re.findall(r"(\w+) -\.-> (\w+)", DIAGRAM)}

SPANS = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
PATHS = [s for s in SPANS if re.fullmatch(r"[\w*]+(/[\w*.]*)+|\w+\.(py|toml)", s)]
OUTPUT = ("checkpoints/", "runs/", "timm/")  # files of a run and prefixes of names
DOTTED_NAMES = [s for s in SPANS if re.fullmatch(r"zoo(\.\w+)+", s)]


@functools.cache
def imports() -> dict[str, set[str]]:
    """Return which modules and packages directly below `zoo` each of them imports."""
    found: dict[str, set[str]] = {name: set() for name in NAMES}
    for file in sorted((ROOT / "zoo").rglob("*.py")):
        name = file.relative_to(ROOT / "zoo").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for parts in (module.split(".") for module in modules):
                if parts[0] == "zoo" and len(parts) > 1 and parts[1] in NAMES - {name}:
                    found.setdefault(name, set()).add(parts[1])
    return found


def reachable(start: str) -> set[str]:
    """Return where arrows lead from `start`."""
    found, queue = set(), [start]
    while queue:
        name = queue.pop()
        new = {b for a, b in ARROWS if a == name} - found
        found |= new
        queue += new
    return found


def test_the_diagram_has_every_package_but_those_at_the_bottom():
    drawn = {name for arrow in ARROWS | DOTTED for name in arrow}
    assert drawn == NAMES - BASE


def test_arrows_point_down_the_layers():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert [(a, b) for a, b in sorted(ARROWS) if level[a] >= level[b]] == []


def test_each_arrow_is_an_import_and_each_import_is_drawn():
    assert [(a, b) for a, b in sorted(ARROWS) if b not in imports()[a]] == []
    drawn = {(a, b) for a in NAMES for b in reachable(a)}
    real = {(a, b) for a in NAMES - BASE for b in imports()[a] - BASE}
    assert sorted(real - drawn) == []


def test_no_arrow_repeats_what_others_say():
    for a, b in sorted(ARROWS):
        others = {c for d, c in ARROWS if d == a} - {b}
        assert not any(b in reachable(c) for c in others), f"{a} --> {b} follows from others"


@pytest.mark.parametrize(("a", "b"), sorted(DOTTED))
def test_dotted_arrows_are_imports_by_name(a, b):
    source = (ROOT / "zoo" / f"{a}.py").read_text("utf-8")
    assert f'import_module(f"zoo.{b}.' in source
    assert b not in imports()[a]


def test_every_package_is_described():
    for name in NAMES:
        path = f"zoo/{name}/" if (ROOT / "zoo" / name).is_dir() else f"zoo/{name}.py"
        assert f"`{path}`" in PAGE, path


def test_paths_exist():
    paths = [path for path in PATHS if not path.startswith(OUTPUT)]
    assert len(paths) > 20
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []


def test_paths_of_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    words = [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]
    paths = [word for word in words if re.fullmatch(r"\w+(/[\w.]*)+|\w+\.(py|toml|txt)", word)]
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_names_exist():
    assert len(DOTTED_NAMES) > 30
    assert [name for name in DOTTED_NAMES if not defined(name)] == []


def defined(name: str) -> bool:
    """Say whether the package defines a name such as `zoo.deploy.pipeline.export`."""
    path, parts = ROOT, name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if parts and (path / f"{parts[0]}.py").is_file():
        path = path / f"{parts.pop(0)}.py"
    file = path / "__init__.py" if path.is_dir() else path
    body = ast.parse(file.read_text("utf-8")).body
    for part in parts:
        found = [node for node in body if part in names_of(node)]
        if not found:
            return part in lazy_names(file)
        body = getattr(found[0], "body", [])
    return True


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


def lazy_names(file: Path) -> set[str]:
    """Return the public names of `zoo`, which are imported on first use."""
    import zoo

    return set(zoo.__all__) if file == ROOT / "zoo" / "__init__.py" else set()


def test_a_name_that_does_not_exist_is_found():
    assert defined("zoo.training.loop.Loop.run")
    assert defined("zoo.create_model")
    assert not defined("zoo.training.loop.Loop.walk")
    assert not defined("zoo.training.loop.Coil")
