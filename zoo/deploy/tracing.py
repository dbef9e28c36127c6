"""Functions that all exporters share: prepare a model for tracing, trace it with `torch.export`."""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shape_config

from zoo.binary import class_map
from zoo.deploy.spec import ExportSpec
from zoo.deploy.suppression import suppress
from zoo.deploy.tables import resample_tables
from zoo.environment import quiet
from zoo.errors import BadInput, NotExportable, first_line
from zoo.runtimes.pytorch import flatten_outputs

CUSTOM_OPERATOR = re.compile(r"\bzoo(?:\.|::)(\w+)")
# Algorithms of `zoo.ops.selective_scan` with few operators and memory linear in the length: for one
# length, and for any.
STATIC_SCAN, DYNAMIC_SCAN = "multi_level", "any_length"


class WithPrePostProcessing(nn.Module):
    """A model with normalisation before it, or softmax, argmax or suppression after it.

    Args:
        model: Returns logits.
        mean: Mean of each channel, of values in 0..1. With it, `forward` takes uint8.
        std: Standard deviation of each channel, of values in 0..1.
        postprocessing: `"softmax"` or `"argmax"`, over classes; `"sigmoid"`, of each class;
            `"nms"`, non-maximum suppression; None: return what the model returns.
        axes: Number of spatial axes: 2 for images, 3 for volumes.

    Attributes:
        takes_pixels: Whether `forward` takes uint8.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        postprocessing: str | None = None,
        axes: int = 2,
    ) -> None:
        super().__init__()
        self.model, self.postprocessing = model, postprocessing
        self.takes_pixels = mean is not None
        if mean is not None and std is not None:
            like = next(model.parameters(), torch.empty(0))
            ones = (1,) * axes
            self.register_buffer("mean", 255 * like.new_tensor(mean).view(1, -1, *ones))
            self.register_buffer("scale", 1 / (255 * like.new_tensor(std).view(1, -1, *ones)))
        self.reparameterized = getattr(model, "reparameterized", False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or probabilities, B K or B K H W, or classes, B H W, for `x`, B C H W.

        For a detector: boxes and scores, B A 4+K, or detections, B D 6.
        """
        if self.takes_pixels:
            x = (x.to(self.mean.dtype) - self.mean) * self.scale  # type: ignore[operator,union-attr]
        y = self.model(x)
        if self.postprocessing == "softmax":
            return y.softmax(dim=1)
        if self.postprocessing == "sigmoid":
            return y.sigmoid()
        if self.postprocessing == "argmax":
            return class_map(y).to(torch.int32)
        if self.postprocessing == "nms":
            return suppress(y)
        return y


class HalfPrecision(nn.Module):
    """A copy of a model that computes in float16; inputs and outputs are float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the outputs for `x`, B C H W, in float32."""
        outputs = [y.float() for y in flatten_outputs(self.model(x.half()))]
        return outputs[0] if len(outputs) == 1 else outputs


def to_half_precision(model: nn.Module) -> nn.Module:
    """Return a copy of a model that computes in float16; inputs and outputs keep their types.

    Pre- and postprocessing stay in float32.
    """
    if not isinstance(model, WithPrePostProcessing):
        return HalfPrecision(model)
    outer = copy.copy(model)
    outer._modules = {"model": HalfPrecision(model.model)}
    return outer


def with_exportable_scans(model: nn.Module, algorithm: str = STATIC_SCAN) -> nn.Module:
    """Return a copy of `model` whose selective scans consist of PyTorch's operators.

    A model without selective scans is returned unchanged.

    Args:
        model: Any model.
        algorithm: The backend of `zoo.ops.selective_scan` to use.
    """
    if not any(hasattr(module, "scan_backend") for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "scan_backend"):
            module.scan_backend = algorithm  # pyright: ignore[reportArgumentType]
    return model


def prepare_for_tracing(model: nn.Module, spec: ExportSpec, scan: str | None = None) -> nn.Module:
    """Return the variant of a model to trace: exportable scans, resampled tables, precision.

    Args:
        model: The model, in evaluation mode; it is not changed.
        spec: The requested size and precision.
        scan: Algorithm of selective scans; default: `STATIC_SCAN` or `DYNAMIC_SCAN`.
    """
    if not spec.dynamic_size:
        model = resample_tables(model, example_input(model, spec))
    model = with_exportable_scans(
        model, scan or (DYNAMIC_SCAN if spec.dynamic_size else STATIC_SCAN)
    )
    return to_half_precision(model) if spec.half else model


def example_input(model: nn.Module, spec: ExportSpec) -> Tensor:
    """Return zeros of the shape `spec.traced_size` and the type that `model` takes."""
    like = next(model.parameters(), torch.empty(0))
    x = torch.zeros(spec.traced_size, dtype=like.dtype, device=like.device)
    return x.byte() if getattr(model, "takes_pixels", False) else x


def count_outputs(model: nn.Module, spec: ExportSpec) -> int:
    """Run a model at the requested size and return how many tensors it returns.

    With a dynamic size it is run at the traced size, too.

    Raises:
        BadInput: The model does not run at the requested size.
        NotExportable: The size is dynamic, and the model does not run at the traced size.
    """
    x = example_input(model, dataclasses.replace(spec, dynamic_size=False))
    try:
        with torch.inference_mode():
            count = len(flatten_outputs(model(x)))
    except Exception as error:  # a model may raise any error at a size that it does not support
        raise BadInput(
            f"the model does not run on input_size={tuple(x.shape)}: {first_line(error)}"
        ) from error
    if spec.dynamic_size:
        x = example_input(model, spec)
        try:
            with torch.inference_mode():
                model(x)
        except Exception as error:  # as above
            size = "x".join(map(str, x.shape[2:]))
            raise not_dynamic(model, f"it does not run at {size}") from error
    return count


def trace(model: nn.Module, spec: ExportSpec, target: str) -> torch.export.ExportedProgram:
    """Trace a model with `torch.export`.

    Args:
        model: The model, in evaluation mode; it is not changed.
        spec: The requested sizes and precision.
        target: What the model is exported to, for messages.

    Raises:
        BadInput: The model does not run at this size.
        NotExportable: The model cannot be traced, or a dynamic axis became static.
    """
    x = example_input(model, spec)
    count_outputs(model, spec)
    model = prepare_for_tracing(model, spec)
    axes = dict.fromkeys(spec.dynamic_axes, torch.export.Dim.AUTO)
    try:
        # With a dynamic batch, PyTorch would assume that the batch is larger than 1.
        only_sides = spec.dynamic_size and not spec.dynamic_batch
        with quiet(), without_size_one_assumptions(only_sides):
            program = torch.export.export(model, (x,), dynamic_shapes=(axes or None,))
    except Exception as error:  # tracing passes on any error of the model
        raise NotExportable(
            f"{model_name(model)} cannot be exported to {target}: {root_cause(error)}"
        ) from error
    refuse_custom_operators(model, spec, [str(node.target) for node in program.graph.nodes])
    check_dynamic_axes(model, input_shape(program), spec)
    return program


@contextlib.contextmanager
def without_size_one_assumptions(enabled: bool) -> Iterator[None]:
    """Keep PyTorch from assuming that sizes computed from a dynamic axis are, or are not, 1.

    By default it records such assumptions while tracing. A program traced with several windows
    would then not run on an image with one window, and vice versa.

    Args:
        enabled: False leaves PyTorch's setting unchanged.
    """
    before = shape_config.backed_size_oblivious
    shape_config.backed_size_oblivious = before or enabled
    try:
        yield
    finally:
        shape_config.backed_size_oblivious = before


def refuse_custom_operators(model: nn.Module, spec: ExportSpec, operators: Sequence[str]) -> None:
    """Raise `NotExportable` if a program contains an operator that only this package defines.

    Args:
        model: The model, for the message.
        spec: The requested sizes, for the message.
        operators: Names of the operators in the program.
    """
    custom = sorted({found[1] for name in operators if (found := CUSTOM_OPERATOR.search(name))})
    if not custom:
        return
    plural = "s" * (len(custom) > 1)
    reason = f"no runtime has the custom operator{plural} {' and '.join(custom)}"
    if spec.dynamic_size:
        raise not_dynamic(model, reason)
    raise NotExportable(f"{model_name(model)} cannot be exported: {reason}")


def check_dynamic_axes(model: nn.Module, shape: Sequence[object], spec: ExportSpec) -> None:
    """Raise `NotExportable` if an axis that must be dynamic is static in a program.

    Args:
        model: The model, for the message.
        shape: Shape of the program's input; static axes are integers.
        spec: States which axes must be dynamic.
    """
    static = [axis for axis in spec.dynamic_axes if isinstance(shape[axis], int)]
    if 0 in static:
        raise NotExportable(
            f"{model_name(model)} cannot be exported with a dynamic batch: the traced graph depends"
            " on the number of images; set export.batch to 1 or another number"
        )
    if static:
        names = " and ".join(spec.dynamic_axes[axis] for axis in static)
        raise not_dynamic(model, f"the traced graph is specialised to one {names}")


def not_dynamic(model: nn.Module, reason: str) -> NotExportable:
    """Return the error for a model that cannot be exported with a dynamic size."""
    return NotExportable(
        f"{model_name(model)} cannot be exported with a dynamic size: {reason}; "
        "set export.dynamic_size=false"
    )


def input_shape(program: torch.export.ExportedProgram) -> list[int | str]:
    """Return the shape of a program's input; a dynamic axis is given by its symbol."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return [n if isinstance(n, int) else str(n) for n in node.meta["val"].shape]


def model_name(model: nn.Module) -> str:
    """Return the class name of a model without the wrappers of this module."""
    while isinstance(model, WithPrePostProcessing | HalfPrecision):
        model = model.model
    return type(model).__name__


def root_cause(error: BaseException) -> str:
    """Return the first line of the innermost cause; exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
