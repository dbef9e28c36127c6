"""What importing costs and reaches: `import zoo` nothing heavy, and every module only downwards."""

import ast
import subprocess
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zoo"

# From the bottom up; a module imports from its own rank and from those below. The longest prefix
# that fits a module's name decides.
RANKS = {
    0: ["zoo.errors", "zoo.keys", "zoo.images"],
    1: ["zoo.registry", "zoo.facts"],
    2: ["zoo.ops"],
    3: ["zoo.blocks"],
    4: ["zoo.backbone"],
    5: ["zoo.models"],
    6: ["zoo.weights"],
    7: ["zoo.factory", "zoo.decoders", "zoo.inputs", "zoo.timm_bridge"],
    8: [f"zoo.profiling.{name}" for name in ("count", "rules", "traffic", "hooks")],
    9: ["zoo.reparam"],
    10: ["zoo.profiling", "zoo.deploy", "zoo.runtimes"],
    11: ["zoo.data", "zoo.deploy.predict"],
    12: ["zoo.training"],
    13: ["zoo.compression", "tools.capabilities"],  # which tries int8, too
    14: ["zoo.config"],
    15: ["zoo.__main__"],
}
# Schemas are plain dataclasses of their own parts; whoever reads settings may import them.
SCHEMAS = {
    "zoo.data.config",
    "zoo.deploy.config",
    "zoo.profiling.config",
    "zoo.compression.config",
    "zoo.training.config",
}
# Imports against the direction, each with its reason.
EXCEPTIONS = {
    ("zoo.reparam", "zoo.profiling.latency"): "its report times both forms",
    ("zoo.deploy", "zoo.config"): "the command reads the schema of its run",
    ("zoo.training", "zoo.config"): "the command reads the schema of its run",
    ("zoo.profiling", "zoo.config"): "the command reads the schema of its run",
    ("zoo.compression", "zoo.config"): "the command reads the schema of its run",
}
HEAVY = {"torch", "timm", "torchvision", "lightning", "hydra", "numpy", "onnx", "sklearn", "fvcore"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def rank(name: str) -> int:
    fits = [
        (len(prefix), level)
        for level, prefixes in RANKS.items()
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert fits, f"{name} has no place in the order of imports: give it a rank"
    return max(fits)[1]


def imported(path: Path) -> set[str]:
    """Names of the package's modules that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else public(name, base) for name in inner}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(public(f"{node.value.id}.{node.attr}", ""))
    return {name for name in found if name.startswith("zoo.")}


def public(name: str, otherwise: str) -> str:
    """Where a public name such as `zoo.count` lives; `otherwise` if it is none."""
    package, _, attribute = name.rpartition(".")
    return zoo._HOME.get(attribute, otherwise) if package == "zoo" else otherwise


def excepted(name: str, target: str) -> bool:
    return target in SCHEMAS or any(
        (name == a or name.startswith(f"{a}.")) and (target == b or target.startswith(f"{b}."))
        for a, b in EXCEPTIONS
    )


@pytest.mark.parametrize("name", [name for name in MODULES if name != "zoo"])
def test_imports_point_downwards(name):
    wrong = {
        target
        for target in imported(MODULES[name])
        if rank(target) > rank(name) and not excepted(name, target)
    }
    assert not wrong


def test_every_exception_is_needed():
    for a, b in EXCEPTIONS:
        users = [
            name
            for name in MODULES
            if (name == a or name.startswith(f"{a}."))
            and any(t == b or t.startswith(f"{b}.") for t in imported(MODULES[name]))
        ]
        assert users, f"nothing in {a} imports {b} any more"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("zoo.models.")])
def test_models_import_only_what_models_are_made_of(name):
    assert all(rank(target) < 5 for target in imported(MODULES[name]))


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schemas_import_nothing_heavy(name):
    tree = ast.parse(MODULES[name].read_text())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").partition(".")[0])
    assert not roots & HEAVY


def loaded_after(code: str, python) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([*python, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo; zoo.list_models('mobile*', smallest_of_family=True)",
        "import zoo; zoo.model_info('efficientformer_l1')",
        "import zoo; zoo.BadInput, zoo.register, dir(zoo)",
        "from zoo.settings import DataConfig; from zoo.settings import TrainConfig",
        "from zoo.settings import ExportConfig; import zoo.profiling.config",
    ],
)
def test_what_needs_no_torch_imports_none(code, python):
    assert not loaded_after(code, python) & HEAVY


def test_building_imports_only_the_model_asked_for(python):
    code = "import zoo; zoo.create_model('mobilenetv2_035'); import sys; print(*sys.modules)"
    done = subprocess.run([*python, "-c", code], capture_output=True, text=True, check=True)
    assert "zoo.models.mobilenetv2" in done.stdout.split()
    assert "zoo.models.efficientformer" not in done.stdout.split()
    optional = {"onnx", "onnxruntime", "lightning", "hydra", "fvcore", "numba"}
    assert not {name.partition(".")[0] for name in done.stdout.split()} & optional


def test_every_public_name_is_there():
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
    assert set(zoo.__all__) == set(dir(zoo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.nothing
