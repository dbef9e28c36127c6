"""timm's own tests/test_models.py over our models, as it stands in a checkout of timm."""

import timm
from outside import checkout, run
from support import CLASSIFIERS

import zoo

MARKERS = ["base", "forward", "cfg", "torchscript", "features", "fxforward", "fxbackward"]

# What timm asks of every model; a newer suite may ask more, but these must have run.
ASKED = (
    "forward",
    "backward",
    "default_cfgs",
    "forward_torchscript",
    "forward_features",
    "forward_intermediates_features",
    "forward_intermediates",
    "forward_fx",
    "backward_fx",
    "forward_fx_torchscript",
)


def possible(test: str) -> bool:
    """Say whether facts leave a test a chance; TorchScript and torch.fx may be stated to fail."""
    name = test.rpartition("zoo_")[2].rstrip("]")
    stated = zoo.model_info(name)["capabilities"]
    return not (
        ("torchscript" in test and not stated.get("script", True))
        or ("_fx" in test and not stated.get("trace", True))
    )


def test_every_test_of_timm_passes(request, tmp_path):
    folder = checkout(request, "timm", "tests/test_models.py", timm.__version__)
    names = [f"zoo_{name}" for name in CLASSIFIERS]
    results = run(
        folder / "tests" / "test_models.py",
        MARKERS,
        tmp_path,
        *("-p", "zoo_timm_plugin", "-k", " or ".join(names)),
        ZOO_OUTSIDE_MODELS=",".join(names),
    )
    failed = {test for test, line in results.items() if line != "passed"}
    stated = {test for test in results if not possible(test)}
    assert failed == stated, {test: results[test] for test in failed ^ stated}
    for name in names:
        done = {test.partition("[")[0] for test in results if f"{name}]" in test}
        assert done >= {f"test_model_{asked}" for asked in ASKED}, name
