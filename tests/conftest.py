"""Options of the whole suite, and one thread a process."""

import gc
import os
import sys

import pytest
import torch

import zoo.registry

# Operators on tiny tensors do not gain from threads, and processes side by side lose by them.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


def pytest_addoption(parser):
    parser.addoption("--renew-keys", action="store_true", help="write the lists of parameter names")
    for suite in ("timm", "smp"):
        parser.addoption(
            f"--{suite}-tests",
            default=os.environ.get(f"ZOO_{suite.upper()}_TESTS"),
            metavar="FOLDER",
            help=f"a checkout of {suite} whose own tests are run over our models",
        )


@pytest.fixture(scope="module", autouse=True)
def models_go_with_the_file(request):
    """Free what a file of tests shares, or a process ends up holding every model in every form."""
    yield
    from zoo.profiling.memory import release_memory

    for shared in vars(request.module).values():  # `support.shaken`, too, where it is imported
        if callable(clear := getattr(shared, "cache_clear", None)):
            clear()
    torch.compiler.reset()
    release_memory()
    # PyTorch keeps what programs were made of, a million objects: no search for garbage in them.
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
