"""The formats: who writes each, how its file ends, what runs it, and what it cannot do."""

import difflib
from dataclasses import dataclass, field

from zoo.errors import BadInput, NotExportable


@dataclass(frozen=True)
class Format:
    """A kind of artefact.

    Attributes:
        module: What writes it.
        suffix: How its file ends.
        runtime: What it is loaded in again and compared; None where nothing here can run it.
        cannot: Settings that it cannot take, each with the reason.
        opsets: Whether there is an operator set to choose.
    """

    module: str
    suffix: str
    runtime: str | None
    cannot: dict[str, str] = field(default_factory=dict)
    opsets: bool = False

    def can(self, setting: str) -> bool:
        """Say whether the format takes a setting."""
        return setting not in self.cannot


FORMATS = {
    "onnx": Format("zoo.deploy.onnx", ".onnx", "onnxruntime", opsets=True),
    "pt2": Format("zoo.deploy.pt2", ".pt2", "pt2"),
    "torchscript": Format("zoo.deploy.torchscript", ".pt", "torchscript"),
    "openvino": Format("zoo.deploy.openvino", ".xml", "openvino", opsets=True),
    "executorch": Format(
        "zoo.deploy.executorch",
        ".pte",
        "executorch",
        {
            "dynamic_batch": "ExecuTorch plans its memory for one batch; give export.batch=1",
            "dynamic_size": "ExecuTorch plans its memory for one size; make a file for each size",
            # Its runtime (1.5.1) ends with a segmentation fault on such a program.
            "preprocess": "ExecuTorch does not run programs that take bytes; leave it out",
        },
    ),
    "aoti": Format("zoo.deploy.aoti", ".aoti.pt2", "aoti"),
    "coreml": Format(
        "zoo.deploy.coreml",
        ".mlpackage",
        None,
        {
            "dynamic_batch": "Core ML is written for one batch here; give export.batch=1",
            "dynamic_size": "Core ML is written for one size here; make a file for each size",
            "preprocess": "Core ML takes no tensor of bytes; leave export.preprocess out",
        },
    ),
}


def get_format(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        BadInput: There is none; the message names the nearest.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(str(name).lower(), FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(FORMATS)}"
        raise BadInput(f"no format named {name!r}; {hint}")
    return FORMATS[name]


def by_file(name: str) -> Format:
    """Return the format of a file by how its name ends; the longest ending counts."""
    fitting = [kind for kind in FORMATS.values() if name.endswith(kind.suffix)]
    return max(fitting, key=lambda kind: len(kind.suffix))


def check(name: str, **settings: object) -> None:
    """Raise `NotExportable` where a format cannot do what is asked, `BadInput` for an opset.

    Args:
        name: The format.
        settings: What is asked: `dynamic_batch`, `dynamic_size`, `preprocess`, `opset` ...
    """
    kind = get_format(name)
    for setting, value in settings.items():
        if value and not kind.can(setting):
            raise NotExportable(f"format {name!r} with {setting}: {kind.cannot[setting]}")
    if settings.get("opset") is not None and not kind.opsets:
        named = " and ".join(repr(other) for other, it in FORMATS.items() if it.opsets)
        raise BadInput(f"opset={settings['opset']!r}: only formats {named} have operator sets")
