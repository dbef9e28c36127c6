"""What an import loads: `import zoo` nothing heavy, a model only its own family.

The direction of imports is a contract of import-linter in pyproject.toml; `make lint` checks it.
"""

import inspect
import subprocess

import pytest

import zoo

HEAVY = {"torch", "timm", "torchvision", "lightning", "hydra", "numpy", "onnx", "sklearn", "fvcore"}


def loaded_by(code: str, python) -> set[str]:
    """Return the modules that are loaded after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([*python, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    "code",
    [
        "import zoo; zoo.list_models('mobile*', smallest_of_family=True)",
        "import zoo; zoo.model_info('efficientformer_l1'); zoo.BadInput, zoo.register, dir(zoo)",
        "import zoo.settings, zoo.environment, zoo.deploy.files",
    ],
)
def test_listing_models_and_reading_settings_load_nothing_heavy(code, python):
    assert not packages(loaded_by(code, python)) & HEAVY


@pytest.mark.slow
def test_building_a_model_loads_only_its_family(python):
    loaded = loaded_by("import zoo; zoo.create_model('mobilenetv2_035')", python)
    assert "zoo.models.mobilenetv2" in loaded
    assert "zoo.models.efficientformer" not in loaded
    optional = {"onnx", "onnxruntime", "lightning", "hydra", "fvcore", "numba"}
    assert not packages(loaded) & optional


def test_every_public_name_is_a_documented_object():
    for name in set(zoo.__all__) - {"__version__"}:
        value = getattr(zoo, name)
        assert inspect.isfunction(value) or inspect.isclass(value) or inspect.ismodule(value), name
        assert inspect.getdoc(value), name
    assert set(zoo.__all__) == set(dir(zoo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.nothing


def test_numerical_kernels_are_reached_from_the_package(python):
    code = "import zoo; assert zoo.ops.selective_scan.__module__.startswith('zoo.ops')"
    assert "zoo.ops" in loaded_by(code, python)
