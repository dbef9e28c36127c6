"""Efficient vision backbones with counts, latencies and exports that can be trusted.

The names below are the public API. They are imported on first use: `import zoo` is quick, and
listing models does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "list_models": "zoo.registry",
    "model_info": "zoo.registry",
    "list_weights": "zoo.functions",
    "register": "zoo.registry",
    "create_model": "zoo.factory",
    "load_weights": "zoo.weights",
    "reparameterize": "zoo.reparam",
    "recalibrate": "zoo.recalibration",
    "count": "zoo.functions",
    "measure": "zoo.profiling.latency",
    "compare": "zoo.profiling.latency",
    "export": "zoo.functions",
    "train": "zoo.functions",
    "eval": "zoo.functions",
    "fit": "zoo.functions",
    "benchmark": "zoo.functions",
    "pick": "zoo.functions",
    "prune": "zoo.functions",
    "predict": "zoo.functions",
    "report": "zoo.functions",
    "push": "zoo.functions",
    "score": "zoo.functions",
    "verify": "zoo.functions",
    "quantize": "zoo.compression.int8",
    "prune_tokens": "zoo.compression.token_pruning",
    "ZooError": "zoo.errors",
    "UnknownModel": "zoo.errors",
    "BadWeights": "zoo.errors",
    "BadInput": "zoo.errors",
    "UncountedOperator": "zoo.errors",
    "MissingExtra": "zoo.errors",
    "NotExportable": "zoo.errors",
}

_PACKAGES = ("ops",)  # subpackages whose functions are public: `zoo.ops.selective_scan`

__all__ = [*_LAZY, *_PACKAGES, "__version__"]

if TYPE_CHECKING:
    from zoo.compression.int8 import quantize as quantize
    from zoo.compression.token_pruning import prune_tokens as prune_tokens
    from zoo.errors import BadInput as BadInput
    from zoo.errors import BadWeights as BadWeights
    from zoo.errors import MissingExtra as MissingExtra
    from zoo.errors import NotExportable as NotExportable
    from zoo.errors import UncountedOperator as UncountedOperator
    from zoo.errors import UnknownModel as UnknownModel
    from zoo.errors import ZooError as ZooError
    from zoo.factory import create_model as create_model
    from zoo.functions import benchmark as benchmark
    from zoo.functions import count as count
    from zoo.functions import eval as eval
    from zoo.functions import export as export
    from zoo.functions import fit as fit
    from zoo.functions import list_weights as list_weights
    from zoo.functions import pick as pick
    from zoo.functions import predict as predict
    from zoo.functions import prune as prune
    from zoo.functions import push as push
    from zoo.functions import report as report
    from zoo.functions import score as score
    from zoo.functions import train as train
    from zoo.functions import verify as verify
    from zoo.profiling.latency import compare as compare
    from zoo.profiling.latency import measure as measure
    from zoo.recalibration import recalibrate as recalibrate
    from zoo.registry import list_models as list_models
    from zoo.registry import model_info as model_info
    from zoo.registry import register as register
    from zoo.reparam import reparameterize as reparameterize
    from zoo.weights import load_weights as load_weights


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"zoo.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
