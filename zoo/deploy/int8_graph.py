"""The int8 graph that quantisation-aware training trains and exports.

The model is fused and traced by `torch.export`, and torchao's PT2E inserts fake quantisation where
ExecuTorch's XNNPACK computes in int8: weights symmetric with one scale per channel, activations
with one scale per tensor. `Prepared` is trained; `Converted` has real int8 weights and is exported.

The model is fused first, instead of letting PT2E fold batch norms during training. Training,
evaluation and deployment then use one graph, parallel branches included. PT2E folds only a norm
directly after a convolution, with PyTorch's default momentum and epsilon, and traces a dozen slow
patterns to do so.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zoo.deploy import constants, tracing
from zoo.deploy.spec import ExportSpec
from zoo.environment import need, quiet
from zoo.errors import BadInput, BadWeights, NotExportable
from zoo.factory import create_model
from zoo.reparam import reparameterize
from zoo.weights import QAT_KEY

PACKAGES = ("torchao", "executorch")
FORMATS = ("onnx", "executorch")  # OpenVINO would convert the int8 weights back to float
SCHEME = "xnnpack/3"
# Without VNNI, ONNX Runtime adds pairs of products in 16 bits: 255 * (64 + 64) < 2**15. The limit
# is fixed, because weights still change after their ranges are fixed.
WEIGHT_LIMIT = 64
SMALLEST_SCALE = 2**-12  # the minimum of XNNPACK's quantiser


class Prepared(GraphModule):
    """A fused model with fake quantisation; its parameters keep the names of the fused model.

    In train mode the ranges of weights and activations are updated, until `fix_ranges`; in eval
    mode they are fixed. Both modes run one graph: dropout and stochastic depth are off, and batch
    norms that could not be folded keep their statistics.
    """

    def train(self, mode: bool = True) -> "Prepared":
        """Switch to train or eval mode."""
        super().train(mode)
        for fake in self.fakes():
            fake.enable_observer(mode)
            if not mode:
                _freeze_scales(fake)
        return self

    def fix_ranges(self) -> None:
        """Fix the ranges until the next `train()`."""
        for fake in self.fakes():
            fake.disable_observer()

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Initialise the ranges on images, N C H W, without rounding anything."""
        self.train()
        for fake in self.fakes():
            fake.disable_fake_quant()
        with torch.no_grad():
            for images in batches:
                self(images)
        for fake in self.fakes():
            fake.enable_fake_quant()

    def fakes(self) -> Iterator[Any]:
        """Yield the fake-quantisation modules."""
        return (module for module in self.modules() if hasattr(module, "fake_quant_enabled"))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""
        return self.meta["no_weight_decay"]

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return patterns that assign parameters to layers."""
        return self.meta["groups"][coarse]


class Converted(GraphModule):
    """Computes the same as `Prepared`, with int8 weights and (de)quantisation operators."""

    reparameterized = True

    @property
    def input_size(self) -> list[int]:
        """C H W of the images; no other size is supported."""
        return self.meta["input_size"]

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.input_size[0]

    @property
    def num_classes(self) -> int | None:
        """Number of classes."""
        return self.meta["num_classes"]


def prepare(model: nn.Module, input_size: Iterable[int]) -> Prepared:
    """Trace a fused model and insert fake quantisation; parameters are shared with `model`.

    Args:
        model: The fused model, in evaluation mode. Frozen parameters stay frozen.
        input_size: C H W of the images. The batch size is dynamic.

    Raises:
        MissingExtra: A package is not installed.
        NotExportable: The model cannot be traced, or has no layer that XNNPACK computes in int8.
    """
    need("train.qat", PACKAGES)
    size = list(input_size)
    name = type(model).__name__
    graph = _traced(model, size)
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

        graph = prepare_qat_pt2e(graph, _quantizer())
    _put_biases_on_grids(graph)
    net = Prepared(graph, graph.graph, name)
    net.meta.update(graph.meta)  # conversion reads it
    if not any(fake.is_per_channel for fake in net.fakes()):
        raise NotExportable(f"{name} has no layer that XNNPACK computes in int8")
    matcher, undecayed = (getattr(model, key, None) for key in ("group_matcher", "no_weight_decay"))
    net.meta.update(
        input_size=size,
        num_classes=getattr(model, "num_classes", None),
        no_weight_decay=undecayed() if undecayed else set(),
        groups=[matcher(coarse=coarse) if matcher else {} for coarse in (False, True)],
    )
    return net


def converted(net: Prepared) -> Converted:
    """Return `net` with int8 weights, in eval mode; the outputs are the same."""
    name, net = type(net).__name__, _with_biases_on_grids(net)
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph = convert_pt2e(net)
    form = Converted(graph, graph.graph, name)
    form.meta.update({key: net.meta[key] for key in ("input_size", "num_classes")})
    return form.eval()


def is_converted(model: nn.Module) -> bool:
    """Return whether a model, packaged or not, is `Converted`."""
    while isinstance(model, tracing.WithPrePostProcessing):
        model = model.model
    return isinstance(model, Converted)


def check_export(model: nn.Module, format: str, settings: ExportSpec, fuse: bool) -> None:
    """Raise `BadInput` or `NotExportable` unless a `Converted` model supports this export."""
    assert isinstance(model, Converted)
    if format not in FORMATS:
        raise NotExportable(
            f"format {format!r}: a model trained with train.qat can be exported in int8 to "
            f"{', '.join(FORMATS)}"
        )
    if settings.half or not fuse:
        key = "half=True" if settings.half else "fuse=False"
        raise BadInput(
            f"{key} has no effect on a model trained with train.qat: it is in int8 and fused; "
            "leave it out"
        )
    size = list(settings.input_size[1:])
    if settings.dynamic_size or size != model.input_size:
        setting = "dynamic_size=True" if settings.dynamic_size else f"input_size={size}"
        raise BadInput(
            f"{setting}: the model was trained with train.qat for {model.input_size} only; "
            "leave it out"
        )


def facts(net: Prepared) -> dict[str, Any]:
    """Return the entries that a checkpoint has under `QAT_KEY`, which `rebuild` needs."""
    return {"scheme": SCHEME, "fused": True, "input_size": net.meta["input_size"]}


def rebuild(content: Mapping[str, Any], named: str) -> Prepared:
    """Rebuild the trained graph from its checkpoint, in eval mode.

    Args:
        content: The checkpoint; averaged weights are preferred.
        named: Name of the checkpoint, for messages.

    Raises:
        BadWeights: The checkpoint is from another version, or its weights do not fit.
        MissingExtra: A package is not installed.
    """
    about = content[QAT_KEY]
    if about.get("scheme") != SCHEME:
        raise BadWeights(
            f"{named} has the int8 scheme {about.get('scheme')!r}, but this version supports only "
            f"{SCHEME!r}; use the version that wrote it"
        )
    model = create_model(**content["model"]).eval()
    net = prepare(reparameterize(model), about["input_size"])
    try:
        net.load_state_dict(content.get("state_dict_ema") or content["state_dict"])
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines()]
        detail = wrong[min(1, len(wrong) - 1)]
        raise BadWeights(f"{named} does not fit {type(model).__name__}: {detail[:200]}") from error
    return net.eval()


def _traced(model: nn.Module, size: list[int]) -> GraphModule:
    name = type(model).__name__
    like = next(model.parameters(), torch.empty(0))
    x = like.new_zeros(2, *size)
    try:
        with quiet():
            program = torch.export.export(
                tracing.with_exportable_scans(model),
                (x,),
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
            )
    except Exception as error:  # tracing may raise any error
        raise NotExportable(
            f"{name} cannot be traced for train.qat: {tracing.root_cause(error)}"
        ) from error
    if isinstance(tracing.input_shape(program)[0], int):
        raise NotExportable(
            f"{name} cannot be traced for train.qat: its computation depends on the batch size"
        )
    graph = program.module()
    make_padding_explicit(graph)
    # Indices computed from the feature map's size would be mistaken for activations.
    constants.fold_in_place(graph, fold_parameters=False)
    return graph  # type: ignore[return-value]


def make_padding_explicit(graph: GraphModule) -> None:
    """Replace `padding="same"` and `"valid"` of convolutions by numbers, in place.

    XNNPACK's quantiser does not know the operators with names, and would leave them in float.
    """
    plain = {"conv1d": torch.ops.aten.conv1d.default, "conv2d": torch.ops.aten.conv2d.default,
             "conv3d": torch.ops.aten.conv3d.default}  # fmt: skip
    for node in list(graph.graph.nodes):
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        if node.op != "call_function" or overload != "padding" or name not in plain:
            continue
        defaults = (None, [1], "valid", [1], 1)
        arguments: Any = (*node.args, *defaults[len(node.args) - 2 :])
        x, weight, bias, stride, padding, dilation, groups = arguments
        sides = weight.meta["val"].shape[2:]
        dilation = list(dilation) * (len(sides) // len(dilation))
        same = padding == "same"
        totals = [d * (k - 1) if same else 0 for d, k in zip(dilation, sides, strict=True)]
        with graph.graph.inserting_before(node):
            if any(total % 2 for total in totals):  # PyTorch adds an odd pixel at the end
                pads = [n for total in reversed(totals) for n in (0, total % 2)]
                padded = graph.graph.call_function(torch.ops.aten.pad.default, (x, pads))
                padded.meta = dict(node.meta)
                padded.meta["val"] = torch.nn.functional.pad(x.meta["val"], pads)
                x = padded
            halves = [total // 2 for total in totals]
            arguments = (x, weight, bias, stride, halves, dilation, groups)
            explicit = graph.graph.call_function(plain[name], arguments)
            explicit.meta = dict(node.meta)
        node.replace_all_uses_with(explicit)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def _quantizer() -> Any:
    """Return XNNPACK's quantiser with the same rounding as conversion.

    XNNPACK's own configuration for training computes scales in a fused kernel. They differ from
    those of conversion (by a factor of 2 if a channel's weights have one sign), and the range of a
    weight lags a hundred updates behind the weight.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec

    class Quantizer(XNNPACKQuantizer):
        # A fused model has no batch norms, and each of these patterns has to be traced.
        SUPPORTED_PATTERNS = [
            pattern for pattern in XNNPACKQuantizer.SUPPORTED_PATTERNS if "_bn" not in pattern.name
        ]

    values = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, eps=SMALLEST_SCALE
        ),
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver,
            averaging_constant=1.0,  # the current range of the weight
            eps=SMALLEST_SCALE,
        ),
        quant_min=-WEIGHT_LIMIT,
        quant_max=WEIGHT_LIMIT,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    return Quantizer().set_global(QuantizationConfig(values, values, weights, None, is_qat=True))


def on_grid(bias: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Round a bias to the step of an integer sum: activation step times weight step.

    Runtimes store biases in this form. Without this rounding, whole channels of the artefact would
    differ from what was trained and evaluated.
    """
    step = values * weights
    return bias + (torch.round(bias / step) * step - bias).detach()


def _put_biases_on_grids(graph: GraphModule) -> None:
    modules: dict[str, Any] = dict(graph.named_modules(remove_duplicate=False))
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or len(node.args) < 3 or node.args[2] is None:
            continue
        values, weights = (modules.get(str(getattr(n, "target", ""))) for n in node.args[:2])
        if getattr(values, "is_per_channel", None) is not False:
            continue
        if not getattr(weights, "is_per_channel", False):
            continue
        with graph.graph.inserting_before(node):
            scales = [graph.graph.get_attr(f"{n.target}.scale") for n in node.args[:2]]
            grid = graph.graph.call_function(on_grid, (node.args[2], *scales))
            node.update_arg(2, grid)
    graph.recompile()


def _with_biases_on_grids(net: Prepared) -> Prepared:
    """Return a copy with rounded biases instead of calls of `on_grid`."""
    net = copy.deepcopy(net)
    for number, node in enumerate(list(net.graph.nodes)):
        if node.target is not on_grid:
            continue
        bias, *scales = node.args
        values = [net.get_buffer(scale.target) for scale in scales]
        rounded = on_grid(net.get_parameter(bias.target), *values)
        # A layer that is used twice has one rounded bias per use.
        name = f"bias_on_grid_{number}"
        net.register_parameter(name, nn.Parameter(rounded.detach(), requires_grad=False))
        with net.graph.inserting_before(node):
            own = net.graph.get_attr(name)
        own.meta.update(bias.meta)
        node.replace_all_uses_with(own)
        for unused in (node, bias, *scales):
            if not unused.users:
                net.graph.erase_node(unused)
    net.recompile()
    return net


def _freeze_scales(fake: Any) -> None:
    """Compute scale and zero point from the observed range, as conversion does.

    Averaging weights also averages the ranges, but a zero point cannot be averaged.
    """
    observed = fake.activation_post_process.min_val
    if not observed.numel() or not observed.isfinite().all():
        return  # nothing observed yet: a checkpoint will be loaded
    scale, zero = fake.calculate_qparams()
    with torch.no_grad():
        fake.scale.resize_(scale.shape).copy_(scale)
        fake.zero_point.resize_(zero.shape).copy_(zero)
