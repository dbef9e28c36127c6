"""Options of the whole suite, and one thread a process."""

import gc
import os
import sys

import pytest
import torch

import zoo
import zoo.registry

# Operators on tiny tensors do not gain from threads, and processes side by side lose by them.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="leave out slow tests and all but five families"
    )
    for suite in ("timm", "smp"):
        parser.addoption(
            f"--{suite}-tests",
            default=os.environ.get(f"ZOO_{suite.upper()}_TESTS"),
            metavar="FOLDER",
            help=f"a checkout of {suite} whose own tests are run over our models",
        )


# A plain convolutional network, tokens, attention with a distilled head, scans, wavelets.
QUICK_FAMILIES = (
    "mobilenetv2",
    "compact_transformers",
    "efficientformer",
    "lightm_unet",
    "wavemix",
)
QUICK_FOLDERS = ("tests", "blocks", "configs", "contract", "counting", "data", "models", "ops")
QUICK_FOLDERS += ("profiling", "reports")
# Facts and the names of parameters are checked for every model.
EVERY_FAMILY = ("test_contract_facts.py", "test_contract_keys.py", "test_catalogue.py")
SLOW_FILES = ("test_add_a_model.py", "test_latency.py", "test_page.py", "test_sweep.py")
SLOW_FILES += ("test_selective_scan_programs.py",)
FAMILIES = {name: zoo.model_info(name)["family"] for name in zoo.list_models()}


def is_quick(item) -> bool:
    """Return whether `--quick` keeps a test: it is not slow, and its family is one of the five."""
    if item.path.parent.name not in QUICK_FOLDERS or item.path.name in SLOW_FILES:
        return False
    if item.get_closest_marker("slow"):
        return False
    if item.path.name in EVERY_FAMILY:
        return True
    if item.path.parent.name == "models":
        return item.path.stem.removeprefix("test_") in QUICK_FAMILIES
    name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
    return not isinstance(name, str) or FAMILIES.get(name, "mobilenetv2") in QUICK_FAMILIES


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        kept = [is_quick(item) for item in items]
        config.hook.pytest_deselected(
            items=[item for item, keep in zip(items, kept, strict=True) if not keep]
        )
        items[:] = [item for item, keep in zip(items, kept, strict=True) if keep]


@pytest.fixture(scope="module", autouse=True)
def memory_is_freed(request):
    """Free the caches of a test file and compiled programs; the models of `support` stay."""
    yield
    from zoo.profiling.memory import give_back_memory

    for value in vars(request.module).values():
        clear = getattr(value, "cache_clear", None)
        if callable(clear) and value.__module__ == request.module.__name__:
            clear()
    torch.compiler.reset()
    give_back_memory()
    # PyTorch keeps a million objects of its compiled programs; do not search them for garbage.
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture
def registry_as_it_was():
    """Let a test register models of its own that no other test sees."""
    before = set(zoo.registry._THIRD_PARTY)
    yield
    for name in set(zoo.registry._THIRD_PARTY) - before:
        del zoo.registry._THIRD_PARTY[name], zoo.registry._BUILDERS[name]


@pytest.fixture
def quiet_script():
    """torch.jit.script says that it is deprecated; timm's contract still asks for it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield


@pytest.fixture
def python():
    """The command line of this Python, with warnings as errors."""
    return [sys.executable, "-W", "error"]
