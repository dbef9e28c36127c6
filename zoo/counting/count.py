"""Counting: parameters, multiply-accumulates, FLOPs and activations of a model, strictly.

fvcore traces the model and walks the operators; the rules are those of zoo/counting/rules.py. An
operator without a rule is an error that names it and where it stands. Nothing global changes a
count: attention costs the same whether PyTorch runs it fused or written out.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from zoo.counting.rules import FlopCountAnalysis, all_rules
from zoo.counting.traffic import observe
from zoo.errors import BadInput, UncountedOperator


@dataclass(frozen=True)
class Counts:
    """What one forward pass costs.

    Attributes:
        input_size: Shape of the input, batch first.
        params: Parameters, each once.
        macs: Multiply-accumulates of convolutions, matrix products and attention.
        flops: 2 x MACs + elementwise operations (zoo/counting/rules.py says which count how).
        activations: Elements written by the operators that have MACs.
        activation_bytes: The bytes of those elements.
        peak_activation_bytes: The most that the input and all intermediate results take at once,
            operator by operator (zoo/counting/traffic.py); parameters are not in it.
        moved_bytes: What the operators read and write, parameters included.
        operators: Operators executed, views left out.
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
    _params: dict[str, int] = field(repr=False)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOPs for each byte moved (the roofline model's)."""
        return self.flops / self.moved_bytes if self.moved_bytes else 0.0

    def by_module(self, depth: int | None = None) -> dict[str, dict[str, int]]:
        """Return params, macs, flops and activations of every module, by its dotted name.

        Args:
            depth: How deep to go: 1 names the model's children; none goes all the way. The model
                itself is `""`.
        """
        return {
            name: {"params": self._params.get(name, 0), **_totals(counter)}
            for name, counter in self._by_module.items()
            if depth is None or (name.count(".") + 1 if name else 0) <= depth
        }

    def by_operator(self) -> dict[str, dict[str, int]]:
        """Return macs, flops and activations of every kind of operator, the largest first."""
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
    """Count what one forward pass of `model` costs, in evaluation mode.

    The model, its mode and its hooks stay as they were.

    Args:
        model: Any module that takes one tensor.
        input_size: Shape of that tensor, batch first.

    Raises:
        UncountedOperator: The model executes an operator that has no rule.
        BadInput: `input_size` is no shape, or the model cannot run (on it).
    """
    shape = tuple(input_size) if isinstance(input_size, Sequence) else ()
    if len(shape) < 2 or not all(type(side) is int and side > 0 for side in shape):
        raise BadInput(f"input_size={input_size!r}: give a shape such as (1, 3, 224, 224)")
    first = next(model.parameters(), torch.empty(0))
    if first.is_meta:
        raise BadInput("the model is on the meta device and cannot run; give model.to_empty(...)")
    dtype = first.dtype if first.is_floating_point() else torch.float32
    example = torch.zeros(shape, dtype=dtype, device=first.device)
    with evaluation(model), torch.no_grad():
        analysis = _analysis(model, example)
        try:
            analysis.total()
        except NotImplementedError as error:
            raise UncountedOperator(f"no rule for {error}") from error
        except Exception:
            _run_once(model, example)  # the model's own trouble is the user's, any other is ours
            raise
        _refuse_unknown(analysis)
        by_module = {name: analysis.by_operator(name) for name, _ in _modules(model)}
        del analysis  # with the graph that it holds
        traffic = observe(model, example)
    params = {name: sum(p.numel() for p in module.parameters()) for name, module in _modules(model)}
    totals = _totals(by_module[""])
    return Counts(
        input_size=shape,
        params=params[""],
        **totals,
        activation_bytes=totals["activations"] * example.element_size(),
        peak_activation_bytes=traffic.peak,
        moved_bytes=traffic.moved,
        operators=traffic.operators,
        fused=bool(getattr(model, "reparameterized", False)),
        _by_module=by_module,
        _params=params,
    )


def _run_once(model: nn.Module, example: torch.Tensor) -> None:
    try:
        model(example)
    except Exception as error:  # whatever a model raises on what it cannot take
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"the model cannot run on {tuple(example.shape)}: {why}") from error


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules())


def _analysis(model: nn.Module, example: torch.Tensor) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(model, example)
    analysis.clear_op_handles().set_op_handle(**all_rules())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return analysis


def _refuse_unknown(analysis: FlopCountAnalysis) -> None:
    unknown = analysis.unsupported_ops()
    if not unknown:
        return
    places = []
    for kind in unknown:
        inside = [name for name, _ in _modules(analysis._model) if name]
        deepest = [name for name in inside if kind in analysis.unsupported_ops(name)]
        places.append(f"{kind} in {deepest[-1] if deepest else 'the model itself'}")
    raise UncountedOperator(
        f"no rule for {'; '.join(places)}: add one to zoo/counting/rules.py (or to FREE there)"
    )


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode, and every module back into the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
