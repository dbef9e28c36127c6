"""Count the parameters, multiply-accumulates (MACs), FLOPs and activations of a model.

fvcore traces the model and applies a rule of `zoo/counting/rules.py` to each operator. An operator
without a rule raises an error that names the operator and the module that calls it. No global
setting changes a count: attention costs the same whether PyTorch runs it fused or as separate
matrix products.
"""

import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from zoo.counting.liveness import all_results_returned
from zoo.counting.rules import FlopCountAnalysis, Rule, all_rules
from zoo.counting.traffic import measure_traffic
from zoo.display import Displayed, byte_count, quantity, shape
from zoo.errors import BadInput, UncountedOperator, first_line


@dataclass(frozen=True, repr=False)
class Counts(Displayed):
    """The cost of one forward pass.

    Attributes:
        input_size: Shape of the input, batch first.
        params: Number of parameters; a shared parameter counts once.
        macs: Multiply-accumulates of convolutions, matrix products and attention.
        flops: 2 x MACs + elementwise FLOPs, as defined in `zoo/counting/rules.py`.
        activations: Number of elements in the outputs of the operators that have MACs.
        activation_bytes: Size of those outputs in bytes.
        peak_activation_bytes: The most memory that the input and all intermediate results occupy at
            the same time, without parameters (see `zoo/counting/traffic.py`).
        moved_bytes: Bytes that all operators read and write, including parameters.
        operators: Number of operators executed, not counting views.
        fused: Whether the model was re-parameterised.
    """

    input_size: tuple[int, ...]
    params: int
    macs: int
    flops: int
    activations: int
    activation_bytes: int
    peak_activation_bytes: int
    moved_bytes: int
    operators: int
    fused: bool
    _by_module: dict[str, Counter] = field(repr=False)
    _by_innermost_module: dict[str, Counter] = field(repr=False)
    _params: dict[str, int] = field(repr=False)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOPs per byte moved, as in the roofline model."""
        return self.flops / self.moved_bytes if self.moved_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the counts of the whole model as a dictionary that JSON can encode."""
        names = [entry.name for entry in fields(self) if not entry.name.startswith("_")]
        plain = {name: getattr(self, name) for name in (*names, "intensity")}
        return {**plain, "input_size": list(self.input_size)}

    def __str__(self) -> str:
        variant = "fused" if self.fused else "unfused"
        return (
            f"{quantity(self.params)} params, {quantity(self.macs)} MACs, {quantity(self.flops)} "
            f"FLOPs, {quantity(self.activations)} activations, input {shape(self.input_size)}, "
            f"{variant}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures for display."""
        return [
            ("input", shape(self.input_size)),
            ("variant", "fused" if self.fused else "unfused"),
            *((name, f"{getattr(self, name):,}") for name in ("params", "macs", "flops")),
            ("activations", f"{self.activations:,}"),
            ("peak memory of activations", byte_count(self.peak_activation_bytes)),
            ("moved", byte_count(self.moved_bytes)),
            ("FLOPs per byte", f"{self.intensity:.1f}"),
        ]

    def by_module(self, depth: int | None = None) -> dict[str, dict[str, int]]:
        """Return params, macs, flops and activations of each module, keyed by its dotted name.

        A module includes its submodules and all modules that it calls. A layer that two modules
        share therefore counts in both of them, and only once in the whole model.

        Args:
            depth: Greatest depth to list: 0 lists only the model itself, named `""`; 1 also lists
                its children; None lists all modules.
        """
        return {
            name: {"params": self._params.get(name, 0), **_totals(counter)}
            for name, counter in self._by_module.items()
            if depth is None or (name.count(".") + 1 if name else 0) <= depth
        }

    def own_macs(self) -> dict[str, int]:
        """Return the MACs of each module without those of the modules that it calls."""
        return {
            name: _totals(counter)["macs"] for name, counter in self._by_innermost_module.items()
        }

    def by_operator(self) -> dict[str, dict[str, int]]:
        """Return macs, flops and activations of each kind of operator, most FLOPs first."""
        kinds = {key.split(":")[1] for key in self._by_module[""]}
        table = {
            kind: _totals(
                Counter({k: v for k, v in self._by_module[""].items() if k.split(":")[1] == kind})
            )
            for kind in kinds
        }
        return dict(sorted(table.items(), key=lambda item: -item[1]["flops"]))


def _totals(counter: Counter) -> dict[str, int]:
    sums: Counter = Counter()
    for key, value in counter.items():
        sums[key.split(":")[0]] += int(value)
    return {
        "macs": sums["macs"],
        "flops": 2 * sums["macs"] + sums["elementwise"],
        "activations": sums["activations"],
    }


def count(model: nn.Module, input_size: Sequence[int] = (1, 3, 224, 224)) -> Counts:
    """Count the cost of one forward pass of `model` in evaluation mode.

    The model keeps its parameters, its mode and its hooks. A model compiled by `torch.compile` is
    counted as the model that was compiled.

    Args:
        model: Any module whose `forward` takes one tensor.
        input_size: Shape of that tensor, batch first.

    Raises:
        UncountedOperator: The model runs an operator that has no rule.
        BadInput: `input_size` is not a shape, the model fails on such an input, it is a TorchScript
            module, or its parameters have no values (meta device).
    """
    shape = tuple(input_size) if isinstance(input_size, Sequence) else ()
    if len(shape) < 2 or not all(type(side) is int and side > 0 for side in shape):
        raise BadInput(f"input_size={input_size!r} is not a shape such as (1, 3, 224, 224)")
    with _uncompiled(model) as model:
        return _count(model, shape)


def _count(model: nn.Module, shape: tuple[int, ...]) -> Counts:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise BadInput("the model is a TorchScript module; count the Python model it was made from")
    first = next(model.parameters(), torch.empty(0))
    if first.is_meta:
        raise BadInput(
            "the parameters are on the meta device and have no values; call "
            "model.to_empty(device='cpu') first"
        )
    dtype = first.dtype if first.is_floating_point() else torch.float32
    example = torch.zeros(shape, dtype=dtype, device=first.device)
    with evaluation(model), _mha_fast_path_disabled(), torch.no_grad():
        called, innermost = _count_operators(model, example)
        traffic = measure_traffic(model, example)
    modules = dict(model.named_modules())
    params = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    totals = _totals(called[""])
    return Counts(
        input_size=shape,
        params=params[""],
        **totals,
        activation_bytes=totals["activations"] * example.element_size(),
        peak_activation_bytes=traffic.peak,
        moved_bytes=traffic.moved,
        operators=traffic.operators,
        fused=bool(getattr(model, "reparameterized", False)),
        _by_module={name: called[name] for name in modules},
        _by_innermost_module={name: innermost[name] for name in modules},
        _params=params,
    )


def _count_operators(
    model: nn.Module, example: torch.Tensor
) -> tuple[dict[str, Counter], dict[str, Counter]]:
    """Trace `model`; return the cost of each module with and without the modules that it calls."""
    called: dict[str, Counter] = defaultdict(Counter)
    innermost: dict[str, Counter] = defaultdict(Counter)

    def recorded(rule: Rule) -> Rule:
        def apply(inputs: list[Any], outputs: list[Any]) -> Counter:
            cost = rule(inputs, outputs)
            if cost:
                callers = outputs[0].node().scopeName().split("/")  # outermost first
                innermost[callers[-1]].update(cost)
                for name in {ancestor for caller in callers for ancestor in _ancestors(caller)}:
                    called[name].update(cost)
            return cost

        return apply

    analysis = FlopCountAnalysis(model, example)
    handles = {operator: recorded(rule) for operator, rule in all_rules().items()}
    analysis.clear_op_handles().set_op_handle(**handles)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    with _hooks_restored(model):
        try:
            with all_results_returned(model):
                analysis.total()
        except NotImplementedError as error:
            raise UncountedOperator(f"no rule for {error}") from error
        except Exception as error:  # tracing runs the model, which may raise any exception
            _run_once(model, example)  # raises BadInput if the model itself fails
            raise BadInput(
                f"the model runs on {tuple(example.shape)}, but PyTorch cannot trace it, so it "
                f"cannot be counted: {first_line(error)}"
            ) from error
    _require_rules(analysis, model)
    return called, innermost


def _ancestors(name: str) -> list[str]:
    """Return the names of a module and of all modules that contain it: `a.b` -> "", `a`, `a.b`."""
    parts = name.split(".")
    return ["", *(".".join(parts[:end]) for end in range(1, len(parts) + 1))]


def _run_once(model: nn.Module, example: torch.Tensor) -> None:
    try:
        model(example)
    except Exception as error:  # a model may raise any exception on an unsuitable input
        raise BadInput(
            f"the model cannot run on {tuple(example.shape)}: {first_line(error)}"
        ) from error


def _require_rules(analysis: FlopCountAnalysis, model: nn.Module) -> None:
    unknown = analysis.unsupported_ops()
    if not unknown:
        return
    places = []
    for kind in unknown:
        names = [name for name, _ in model.named_modules() if name]
        callers = [name for name in names if kind in analysis.unsupported_ops(name)]
        places.append(f"{kind} in {callers[-1] if callers else 'the model itself'}")
    raise UncountedOperator(
        f"no rule for {'; '.join(places)}: add one to zoo/counting/rules.py, or list an operator "
        "that computes nothing in FREE"
    )


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode, and restore the mode of every module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _mha_fast_path_disabled() -> Iterator[None]:
    """Make `nn.MultiheadAttention` call separate operators instead of one without a rule."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _hooks_restored(model: nn.Module) -> Iterator[None]:
    """Remove hooks that are added in this context: fvcore leaves its own if the model fails."""
    hooks = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    before = [set(registered) for registered in hooks]
    try:
        yield
    finally:
        for registered, kept in zip(hooks, before, strict=True):
            for key in set(registered) - kept:
                del registered[key]


@contextlib.contextmanager
def _uncompiled(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` without `torch.compile`, and restore its compiled modules afterwards.

    Compiled modules cannot be traced. `torch.compile(module)` wraps a module, `module.compile()`
    replaces the function that a call runs.
    """
    if "torch._dynamo" not in sys.modules:  # not imported, so no module is compiled
        yield model
        return
    compiled = torch._dynamo.OptimizedModule
    wrappers: list[tuple[nn.Module, str, nn.Module]] = []
    calls: list[tuple[nn.Module, Any]] = []
    try:
        if isinstance(model, compiled):
            model = model._orig_mod
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, compiled):
                    wrappers.append((parent, name, child))
                    parent._modules[name] = child._orig_mod
        for module in model.modules():
            if module._compiled_call_impl is not None:
                calls.append((module, module._compiled_call_impl))
                module._compiled_call_impl = None
        yield model
    finally:
        for parent, name, child in wrappers:
            parent._modules[name] = child
        for module, call in calls:
            module._compiled_call_impl = call
