"""What exporters have in common: a model made ready, traced by `torch.export`, in silence."""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as switches

from zoo.deploy.spec import Settings
from zoo.deploy.tables import settled
from zoo.environment import quiet
from zoo.errors import BadInput, NotExportable, first_line
from zoo.runtimes.pytorch import flat

OWN_OPERATOR = re.compile(r"\bzoo(?:\.|::)(\w+)")
# Forms of selective scans: few operators at any length, memory in proportion to it, any batch.
SCAN, OPEN_SCAN = "multi_level", "any_length"  # for one size, for any


class Packaged(nn.Module):
    """A model that takes bytes, or gives what an application shows.

    Args:
        model: What computes logits.
        mean: Of each channel, of values in 0..1; with it, `forward` takes pixels as bytes.
        std: Likewise.
        answer: `"softmax"` over classes, `"argmax"` over them, or None: the model's own output.
        axes: 2 of images, 3 of volumes.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        answer: str | None = None,
        axes: int = 2,
    ) -> None:
        super().__init__()
        self.model, self.answer = model, answer
        self.takes_pixels = mean is not None
        if mean is not None and std is not None:
            like = next(model.parameters(), torch.empty(0))
            ones = (1,) * axes
            self.register_buffer("mean", 255 * like.new_tensor(mean).view(1, -1, *ones))
            self.register_buffer("scale", 1 / (255 * like.new_tensor(std).view(1, -1, *ones)))
        self.reparameterized = getattr(model, "reparameterized", False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what `answer` says of `x`, B C H W."""
        if self.takes_pixels:
            x = (x.to(self.mean.dtype) - self.mean) * self.scale  # type: ignore[operator,union-attr]
        y = self.model(x)
        if self.answer == "softmax":
            return y.softmax(dim=1)
        if self.answer == "argmax":
            return y.argmax(dim=1).to(torch.int32)
        return y


class Halved(nn.Module):
    """A copy of a model that computes in float16 between an input and outputs that are as before.

    Bytes are normalised before the model, in float32, if `model` is `Packaged`: of such a one the
    inner model alone is halved.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the outputs in float32."""
        outputs = [y.float() for y in flat(self.model(x.half()))]
        return outputs[0] if len(outputs) == 1 else outputs


def halved(model: nn.Module) -> nn.Module:
    """Return a copy of a model that computes in float16, whatever goes in and comes out."""
    if not isinstance(model, Packaged):
        return Halved(model)
    outer = copy.copy(model)
    outer._modules = {"model": Halved(model.model)}
    return outer


def ready(model: nn.Module, scan: str = SCAN) -> nn.Module:
    """Return a copy whose selective scans are made of PyTorch's operators; or the model itself."""
    if not any(hasattr(module, "scan_backend") for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "scan_backend"):
            module.scan_backend = scan  # pyright: ignore[reportArgumentType]
    return model


def form(model: nn.Module, settings: Settings, open_scan: str = OPEN_SCAN) -> nn.Module:
    """Return the copy of a model that is traced: `ready`, for the asked size and precision.

    Args:
        model: In evaluation mode.
        settings: What is asked.
        open_scan: The form of selective scans if the size stays open.
    """
    if settings.dynamic_size:
        model = ready(model, open_scan)
    else:
        model = ready(settled(model, example(model, settings)))
    return halved(model) if settings.half else model


def example(model: nn.Module, settings: Settings) -> Tensor:
    """Return an input of the shape to trace, of the type that the model takes."""
    like = next(model.parameters(), torch.empty(0))
    x = torch.zeros(settings.traced, dtype=like.dtype, device=like.device)
    return x.byte() if getattr(model, "takes_pixels", False) else x


def output_count(model: nn.Module, settings: Settings) -> int:
    """Return how many tensors a model returns.

    Raises:
        BadInput: The model does not run on the asked size.
        NotExportable: The size is to stay open, and the model does not run on the traced one.
    """
    x = example(model, dataclasses.replace(settings, dynamic_size=False))
    try:
        with torch.inference_mode():
            count = len(flat(model(x)))
    except Exception as error:  # whatever a model raises at a size that it does not take
        raise BadInput(
            f"the model does not run on input_size={tuple(x.shape)}: {first_line(error)}"
        ) from error
    if settings.dynamic_size:
        x = example(model, settings)
        try:
            with torch.inference_mode():
                model(x)
        except Exception as error:
            raise NotExportable(
                f"{title(model)} cannot be exported with an open size: it does not run at "
                f"{'x'.join(map(str, x.shape[2:]))}; export.dynamic_size=false makes a file of one "
                "size"
            ) from error
    return count


def trace(model: nn.Module, settings: Settings, what: str) -> torch.export.ExportedProgram:
    """Trace a model with `torch.export`.

    Raises:
        BadInput: The model does not run on this input.
        NotExportable: It cannot be traced, or an axis that was to stay open is fixed in it; the
            message starts with the model and `what` it cannot be exported to.
    """
    x = example(model, settings)
    output_count(model, settings)
    model = form(model, settings)
    open_axes = dict.fromkeys(settings.open_axes, torch.export.Dim.AUTO)
    try:
        # With an open batch as well, the switch would hold that to be more than 1.
        sides_alone = settings.dynamic_size and not settings.dynamic_batch
        with quiet(), no_side_is_one(sides_alone):
            program = torch.export.export(model, (x,), dynamic_shapes=(open_axes or None,))
    except Exception as error:  # whatever tracing the model raises
        raise NotExportable(f"{title(model)} cannot be exported to {what}: {reason(error)}") from (
            error
        )
    check_operators(model, settings, [str(node.target) for node in program.graph.nodes])
    check_open(model, input_shape(program), settings)
    return program


@contextlib.contextmanager
def no_side_is_one(asked: bool) -> Iterator[None]:
    """If `asked`, let what is made of an open side be a number like any other.

    Otherwise each is held to be 1, or not to be, as it was while tracing, and a program does not
    run on maps of one position or with one window, or on no others. PyTorch has a switch for that.
    """
    before = switches.backed_size_oblivious
    switches.backed_size_oblivious = before or asked
    try:
        yield
    finally:
        switches.backed_size_oblivious = before


def check_operators(model: nn.Module, settings: Settings, used: Sequence[str]) -> None:
    """Raise `NotExportable` if an operator that only this package has is among those used."""
    own = sorted({found[1] for name in used if (found := OWN_OPERATOR.search(name))})
    if own:
        way_out = "; export.dynamic_size=false makes a file of one size"
        raise NotExportable(
            f"{title(model)} cannot be exported{' with an open size' * settings.dynamic_size}: it "
            f"computes with {' and '.join(own)}, an operator that no runtime has"
            f"{way_out * settings.dynamic_size}"
        )


def check_open(model: nn.Module, shape: Sequence[object], settings: Settings) -> None:
    """Raise `NotExportable` unless the axes of `shape` that were to stay open are."""
    fixed = [axis for axis in settings.open_axes if isinstance(shape[axis], int)]
    if 0 in fixed:
        raise NotExportable(
            f"{title(model)} cannot be exported with an open batch: what it computes "
            "depends on the number of images; export.batch=1 (or another number) fixes it"
        )
    if fixed:
        names = " and ".join(settings.open_axes[axis] for axis in fixed)
        raise NotExportable(
            f"{title(model)} cannot be exported with an open size: what it computes is made for "
            f"one {names}; export.dynamic_size=false makes a file of one size"
        )


def input_shape(program: torch.export.ExportedProgram) -> list[int | str]:
    """Return the shape of the input of a program; an open axis is given by its symbol."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return [n if isinstance(n, int) else str(n) for n in node.meta["val"].shape]


def title(model: nn.Module) -> str:
    """Return the name of the class of the model proper."""
    while isinstance(model, Packaged | Halved):
        model = model.model
    return type(model).__name__


def reason(error: BaseException) -> str:
    """The innermost cause: an exporter's own message is pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
