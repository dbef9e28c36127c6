"""Options of the whole suite, and one thread a process."""

import copy
import functools
import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
import zoo.registry
from zoo.cli import main

# Operators on tiny tensors do not gain from threads, and processes side by side lose by them.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# pytest listens to every logger that does not propagate. To this one PyTorch would write each graph
# that it traces, as text: where nobody listens it writes nothing, and traces in half the time.
logging.root.manager.loggerDict.pop("torch.__trace", None)

# Compiling headers in advance pays for many programs; tests compile a few.
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")

# Tracing makes many objects and little garbage. Every test file is cleaned up after (see below).
gc.set_threshold(20_000, 50, 100)


def pytest_runtest_setup(item):
    """Let PyTorch read the ONNX form of its operators once, not for every file: half a second."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is None or hasattr(module.ONNXRegistry.from_torchlib, "__wrapped__"):
        return
    read = functools.cache(module.ONNXRegistry.from_torchlib)

    @functools.wraps(read)
    def copied(**options):
        made = copy.copy(read(**options))  # an export may add operators of its own
        made.functions = {target: list(found) for target, found in made.functions.items()}
        return made

    module.ONNXRegistry.from_torchlib = staticmethod(copied)


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
QUICK_FAMILIES = {
    "mobilenetv2": "mobilenetv2_035",
    "compact_transformers": "cvt_2_4_32",
    "efficientformer": "efficientformer_l1",
    "lightm_unet": "lightm_unet_2d",
    "wavemix": "wavemix_144_7_l1_cifar10",
}
QUICK_FOLDERS = ("tests", "blocks", "configs", "contract", "counting", "data", "models", "ops")
QUICK_FOLDERS += ("profiling", "reports")
# Facts and the names of parameters are checked for every model.
EVERY_FAMILY = ("test_contract_facts.py", "test_contract_keys.py", "test_catalogue.py")
SLOW_FILES = ("test_add_a_model.py", "test_latency.py", "test_page.py", "test_sweep.py")
SLOW_FILES += ("test_selective_scan_programs.py", "test_benchmarking_page.py")


MODELS = frozenset(zoo.list_models())


def has_quick_tests(file: Path) -> bool:
    """Return whether `--quick` reads a file; the others are not even imported."""
    if file.parent.name == "models":
        return file.stem.removeprefix("test_") in QUICK_FAMILIES
    return file.parent.name in QUICK_FOLDERS and file.name not in SLOW_FILES


def is_quick(item) -> bool:
    """Return whether `--quick` keeps a test: it is not slow, and its model is one of the five."""
    if not has_quick_tests(item.path) or item.get_closest_marker("slow"):
        return False
    if item.path.name in EVERY_FAMILY or item.path.parent.name == "models":
        return True
    name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
    return not isinstance(name, str) or name not in MODELS or name in QUICK_FAMILIES.values()


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--quick") and collection_path.name.startswith("test_"):
        return True if not has_quick_tests(collection_path) else None
    return None


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
    from zoo.profiling.memory import release_memory

    for value in vars(request.module).values():
        clear = getattr(value, "cache_clear", None)
        if callable(clear) and value.__module__ == request.module.__name__:
            clear()
    torch.compiler.reset()
    release_memory()
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
def script(monkeypatch, capfd):
    """Run train.py, eval.py, benchmark.py or export.py as a user does, but in this process.

    One of the scripts is started as a process in tests/configs/test_configs.py.
    """

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
        with pytest.raises(SystemExit) as end:
            main(command)
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(command, end.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def python():
    """The command line of this Python, with warnings as errors."""
    return [sys.executable, "-W", "error"]
