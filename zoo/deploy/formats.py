"""The export formats: exporter, file suffix, runtime, and options that are not supported."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from zoo.errors import BadInput, NotExportable, unknown_value

if TYPE_CHECKING:
    from torch import nn

    from zoo.deploy.spec import ExportSpec


class Exporter(Protocol):
    """The contents of a format's exporter module.

    Attributes:
        PACKAGES: Packages that the format needs besides PyTorch.
        INPUT: Name of the artefact's input.
    """

    PACKAGES: tuple[str, ...]
    INPUT: str

    @staticmethod
    def convert(model: "nn.Module", file: Path, spec: "ExportSpec") -> None:
        """Write `model`, in evaluation mode, to `file`."""
        ...

    @staticmethod
    def describe(file: Path) -> dict[str, Any]:
        """Return the entries that the manifest has for this format only."""
        ...


@dataclass(frozen=True)
class Format:
    """A kind of artefact.

    Attributes:
        module: Name of its exporter module.
        suffix: Suffix of its files.
        runtime: Runtime that loads and verifies its files; None if none runs on this platform.
        unsupported: The reason for each option of `zoo.export` that the format does not support.
        has_opsets: Whether `opset` applies to it.
    """

    module: str
    suffix: str
    runtime: str | None
    unsupported: dict[str, str] = field(default_factory=dict)
    has_opsets: bool = False

    def supports(self, option: str) -> bool:
        """Return whether the format supports an option of `zoo.export`."""
        return option not in self.unsupported

    def load_exporter(self) -> Exporter:
        """Import the exporter module."""
        return cast(Exporter, importlib.import_module(self.module))


FORMATS = {
    "onnx": Format("zoo.deploy.onnx", ".onnx", "onnxruntime", has_opsets=True),
    "pt2": Format("zoo.deploy.pt2", ".pt2", "pt2"),
    "torchscript": Format("zoo.deploy.torchscript", ".pt", "torchscript"),
    "openvino": Format("zoo.deploy.openvino", ".xml", "openvino", has_opsets=True),
    "executorch": Format(
        "zoo.deploy.executorch",
        ".pte",
        "executorch",
        {
            "dynamic_batch": "ExecuTorch plans memory for one batch size; set export.batch=1",
            "dynamic_size": "ExecuTorch plans memory for one image size; export a file per size",
            # Its runtime (1.5.1) ends with a segmentation fault on such a program.
            "preprocess": "ExecuTorch cannot run programs with uint8 inputs; leave it out",
        },
    ),
    "aoti": Format("zoo.deploy.aoti", ".aoti.pt2", "aoti"),
    "coreml": Format(
        "zoo.deploy.coreml",
        ".mlpackage",
        None,
        {
            "dynamic_batch": "the Core ML exporter writes static batches only; set export.batch=1",
            "dynamic_size": "the Core ML exporter writes static sizes only; export a file per size",
            "preprocess": "Core ML has no uint8 tensors; leave out export.preprocess",
        },
    ),
}


def get_format(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        BadInput: The format is unknown; the message suggests the nearest name.
    """
    if not isinstance(name, str) or name not in FORMATS:
        raise BadInput(unknown_value("format", name, FORMATS))
    return FORMATS[name]


def format_of_file(name: str) -> Format:
    """Return the format whose suffix `name` ends with; the longest suffix wins.

    Args:
        name: A file name with the suffix of a format.
    """
    matches = [kind for kind in FORMATS.values() if name.endswith(kind.suffix)]
    return max(matches, key=lambda kind: len(kind.suffix))


def check_options(name: str, **options: object) -> None:
    """Refuse options that a format does not support.

    Args:
        name: The format.
        **options: Options of `zoo.export`, such as `dynamic_batch`, `preprocess` or `opset`.

    Raises:
        BadInput: The format is unknown, or `opset` is given for a format without operator sets.
        NotExportable: The format does not support an option.
    """
    kind = get_format(name)
    for option, value in options.items():
        if value and not kind.supports(option):
            raise NotExportable(f"format {name!r} with {option}: {kind.unsupported[option]}")
    if options.get("opset") is not None and not kind.has_opsets:
        others = " and ".join(repr(other) for other, it in FORMATS.items() if it.has_opsets)
        raise BadInput(
            f"opset={options['opset']!r} only applies to formats {others}, not {name!r}; leave it"
            " out"
        )
