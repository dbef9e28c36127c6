"""Stand-ins for foreign classes in a pickle: a checkpoint is read without its authors' code.

Training scripts save objects of their own classes beside the weights: configurations, meters,
NumPy scalars. Nothing named in a pickle is ever imported. Objects of the authors' classes become
empty containers; a name of the standard library or of torch that torch does not consider safe, and
any call of a foreign function, leads to a refusal.
"""

import argparse
import pickle
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from typing import Any

Allowed = list[Any]  # what `torch.serialization.safe_globals` takes

# Packages whose objects are never stood in for: their functions and layers are code.
_CODE = {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "zoo"}
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


class _NeverCalled(type):
    """Metaclass that refuses calls: a pickle may name a foreign class, but not run a function."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise pickle.UnpicklingError("Trying to call reduce for a foreign function")


class Record(metaclass=_NeverCalled):
    """Stands for a foreign object; keeps its state."""

    state: Any = None

    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Table(metaclass=_NeverCalled):
    """Stands for a foreign object that may be a dictionary, too: it becomes an `OrderedDict`."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _DataType:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: str = "", *flags: Any):
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


class _Array:
    """Stands for a NumPy array; its values are not kept."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _scalar(dtype: Any = None, raw: Any = b"", *rest: Any) -> Any:
    """Return a NumPy scalar as a plain number or text."""
    import numpy as np

    code = getattr(dtype, "code", "")
    if not isinstance(raw, bytes) or not re.fullmatch(r"[fiub][1248]|[US]\d+", code):
        return None
    return np.frombuffer(raw, dtype=np.dtype(dtype.order + code), count=1)[0].item()


def _path(*parts: Any) -> str:
    return "/".join(map(str, parts))


def _values(*args: Any) -> tuple[Any, ...]:
    return args


def _table(*args: Any) -> OrderedDict:
    return OrderedDict()


def _array(*args: Any) -> _Array:
    return _Array()


def plain_values() -> Allowed:
    """Return the stand-ins for values that public checkpoints have: arguments, paths, NumPy."""
    found: Allowed = [argparse.Namespace, (_DataType, "numpy.dtype"), (_Array, "numpy.ndarray")]
    for package in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        found += [(_scalar, f"{package}.multiarray.scalar")]
        found += [(_array, f"{package}.multiarray._reconstruct")]
    for flavour in ("Posix", "Windows", "PurePosix", "PureWindows"):
        found += [(_path, f"pathlib.{flavour}Path"), (_path, f"pathlib._local.{flavour}Path")]
    found += [(_values, f"datetime.{kind}") for kind in ("datetime", "date", "time", "timedelta")]
    found += [(_table, "collections.defaultdict")]
    plain = ("int", "float", "str", "bool", "list", "dict", "tuple")
    return found + [(Record, f"builtins.{kind}") for kind in plain]


def for_foreign_classes(names: set[str], kind: type) -> Allowed:
    """Return stand-ins for the names of a pickle that belong to its authors.

    Args:
        names: Dotted names in the pickle.
        kind: `Table` or `Record`.
    """
    foreign = [
        name for name in names if _DOTTED.fullmatch(name) and name.split(".")[0] not in _CODE
    ]
    return [(kind, name) for name in sorted(foreign)]


def global_names(data: Any, pickles: int = 1) -> set[str]:
    """Return the dotted names that pickles import, without running them.

    Args:
        data: A binary file, or the bytes of a pickle.
        pickles: Number of pickles that follow each other in a file.
    """
    import pickletools

    found: set[str] = set()
    for _ in range(pickles):
        for operation, argument, _place in pickletools.genops(data):
            if operation.name == "GLOBAL" and isinstance(argument, str):
                module, _, name = argument.partition(" ")
                module, name = NAME_MAPPING.get(
                    (module, name), (IMPORT_MAPPING.get(module, module), name)
                )
                found.add(f"{module}.{name}")
    return found
