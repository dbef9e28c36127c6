"""Re-parameterisation: compute the same function with fewer operations.

A block that has a cheaper equivalent implements `fused(self)`, which returns the replacement and
does not change the block. `reparameterize` replaces blocks in a deep copy, from the leaves up. In
modules without that method, a batch norm is folded into the convolution or linear layer before it,
if nothing else in the module reads the output of that layer. timm's blocks are fused by their own
methods first.

One module does not show who else reads its layers: a parent may call a convolution directly. So if
a model contains modules of other packages, both forms run on random input, and every fold that
changes an output is undone. `report` lists what was folded and what was not.
"""

import contextlib
import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from zoo.blocks.folding import fold_batch_norm, is_fixed_batch_norm, without_parametrizations
from zoo.blocks.scale import LayerScale
from zoo.display import Displayed
from zoo.errors import BadInput
from zoo.fold_check import ReferenceRun

Model = TypeVar("Model", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
# Modules of these packages only use their own layers as written in their `forward`.
_TRUSTED = ("zoo.", "torch.nn.", "timm.layers.")


@dataclass(repr=False)
class FoldReport(Displayed):
    """What `reparameterize` did with a model.

    Attributes:
        folded: Names of the blocks and norms that were replaced.
        kept: Name of each remaining batch norm, and the reason.
        verified: Whether both forms were compared on random input.
    """

    folded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    verified: bool = False

    def __repr__(self) -> str:
        return f"FoldReport({str(self).splitlines()[0]})"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can encode."""
        return {"folded": self.folded, "kept": self.kept, "verified": self.verified}

    def rows(self) -> list[tuple[str, str]]:
        """Return what was folded and what was not, for display."""
        counts = [("folded", str(len(self.folded))), ("kept", str(len(self.kept)))]
        return [*counts, *self.kept.items()]

    def __str__(self) -> str:
        lines = [f"folded: {len(self.folded)}; kept: {len(self.kept)} batch norms"]
        return "\n".join([*lines, *(f"{name}: {reason}" for name, reason in self.kept.items())])


def reparameterize(model: Model, example_input: Any = None) -> Model:
    """Return a copy of `model` that computes the same function with fewer operations.

    Args:
        model: The model, in evaluation mode; it is not changed. A fused model is copied.
        example_input: A tensor, or a tuple of arguments, to compare both forms of a model on that
            contains modules of other packages. None: random images of a size that works.

    Raises:
        BadInput: The model is in training mode, in which batch norms have no fixed statistics, it
            does not run on `example_input`, or it is no module whose layers can be replaced.
    """
    _check_is_replaceable(model)
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise BadInput(
            f"{training} is in training mode; call model.eval() first, so that batch norms use"
            " their running statistics"
        )
    reference = ReferenceRun(model, example_input)
    found = FoldReport()
    fused = _Fuser(model, reference, found).run()
    if found.folded and _is_foreign(model):
        undone, found.verified = reference.wrong_folds(
            found.folded,
            lambda model, undone: _Fuser(
                model, reference, FoldReport(), dict.fromkeys(undone, "")
            ).run(),
        )
        if undone:
            found = FoldReport(verified=found.verified)
            fused = _Fuser(model, reference, found, undone).run()
    fused.__dict__["reparameterized"] = True  # read by `count` and the exporters
    fused.__dict__["fold_report"] = found
    return cast(Model, fused)


def report(model: nn.Module) -> FoldReport:
    """Return what `reparameterize` did to make `model`.

    Raises:
        BadInput: The model was not returned by `reparameterize`.
    """
    if "fold_report" not in model.__dict__:
        raise BadInput("the model was not returned by zoo.reparameterize; call that first")
    return model.__dict__["fold_report"]


def _check_is_replaceable(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise BadInput(f"model={type(model).__name__} is not an nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise BadInput(
                f"{name or 'the model'} is a TorchScript module, whose layers cannot be replaced; "
                "give the Python model it was made from"
            )
        lazy: Any = nn.parameter.is_lazy
        if any(map(lazy, module._parameters.values())):
            raise BadInput(
                f"{name or 'the model'} has parameters without a shape; run the model once first"
            )


class _Fuser:
    """One pass over a copy of a model.

    Args:
        model: The original.
        reference: Knows how its layers are called.
        found: Filled in by `run`.
        undone: Names of folds to leave out, with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: ReferenceRun,
        found: FoldReport,
        undone: dict[str, str] | None = None,
    ) -> None:
        self.model, self.reference, self.found = model, reference, found
        self.reasons = dict(undone or {})
        self.undone = frozenset(self.reasons)
        self.done: dict[int, nn.Module] = {}  # replacements by the id of the original

    def run(self) -> nn.Module:
        """Return the fused copy."""
        fused = _with_computed_weights(copy.deepcopy(self.model))
        with _default_type_of(fused):
            self._fuse_by_timm(fused, "")
        fused = self._fuse(fused, "").eval()  # new modules start in training mode
        self.found.kept = {
            name: self.reasons.get(name, "no layer before it can absorb it")
            for name, module in fused.named_modules()
            if _plain_norm(module) is not None
        }
        return fused

    def _fuse_by_timm(self, module: nn.Module, path: str) -> None:
        """Fuse blocks inside `module` by the methods that timm's models have for it."""
        for name, child in module.named_children():
            inner = f"{path}.{name}".lstrip(".")
            methods = ("fuse", "reparameterize", "switch_to_deploy")
            known = next(
                (m for m in methods if inspect.isfunction(getattr(type(child), m, None))), ""
            )
            if known and inner not in self.undone and not child.__module__.startswith("zoo."):
                original = copy.deepcopy(child)
                try:
                    result = getattr(child, known)()
                    setattr(module, name, result if known == "fuse" else child)
                    self.found.folded.append(inner)
                except Exception as error:  # a method of that name may do anything
                    setattr(module, name, original)
                    self.reasons[inner] = f"its method {known} failed: {error}"
            self._fuse_by_timm(module.get_submodule(name), inner)

    def _fuse(self, module: nn.Module, path: str) -> nn.Module:
        """Return the replacement of `module`, after replacing its children in place."""
        if id(module) in self.done:  # shared modules stay shared
            return self.done[id(module)]
        parts: dict[str, Any] = module._modules
        for name, child in parts.items():
            if child is not None:
                parts[name] = self._fuse(child, f"{path}.{name}".lstrip("."))
        replacement: Any = module
        if not _has_fused(module):
            self._fold_pairs(module, path)
        elif path not in self.undone:
            block: Any = module
            replacement = block.fused()
            self.found.folded.append(path)
        self.done[id(module)] = replacement
        return replacement

    def _fold_pairs(self, module: nn.Module, path: str) -> None:
        """Fold norms into the layers that `module` itself calls right before them."""
        layers = [m for _, m in _called(module)]
        if not any(type(m) in _FOLDABLE for m in layers) or not any(map(_plain_norm, layers)):
            return
        for before, after in pairs(module):
            layer: Any = module.get_submodule(before)
            norm: Any = module.get_submodule(after)
            plain: Any = _plain_norm(norm)
            if plain is None:
                continue
            name = f"{path}.{after}".lstrip(".")
            reason = self._objection(layer, norm, plain, f"{path}.{before}".lstrip("."))
            if name in self.undone:
                continue
            if reason is not None:
                self.reasons[name] = reason
                continue
            replace(module, before, fold_batch_norm(layer, plain))
            replace(module, after, _rest(norm))
            self.found.folded.append(name)

    def _objection(self, layer: Any, norm: Any, plain: Any, name: str) -> str | None:
        """Return why a norm cannot be folded into `layer`, called `name`; None if it can."""
        if type(layer) not in _FOLDABLE:
            return f"a {type(layer).__name__} cannot absorb it"
        if any(m._forward_hooks or m._forward_pre_hooks for m in (layer, norm)):
            return "it or the layer before it has a hook"
        is_linear = isinstance(layer, nn.Linear)
        if plain.running_mean.numel() != (layer.out_features if is_linear else layer.out_channels):
            return "it normalises another axis than the channels of the layer before it"
        if is_linear and (rank := self.reference.rank_of(name)) != 2:
            # After a linear layer on B N C, a batch norm reads N as channels.
            if rank is None:
                return "the linear layer before it may return B N C; give example_input"
            return "the linear layer before it returns B N C, whose axis N it normalises"
        return None


def _with_computed_weights(model: nn.Module) -> nn.Module:
    """Replace weights that are computed from others, in place: adapters, weight normalisation."""
    for module in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        names: Any = module.parametrizations
        values = {name: getattr(module, name).detach() for name in names}
        without_parametrizations(module, values)
    return model


def _is_foreign(model: nn.Module) -> bool:
    """Return whether a model contains modules whose code is not known to be safe to fold.

    A hook, or a `forward` that one object has for itself, makes foreign code of any module.
    """
    return any(
        not f"{type(m).__module__}.".startswith(_TRUSTED)
        or m._forward_hooks
        or m._forward_pre_hooks
        or "forward" in vars(m)
        for m in model.modules()
    )


def _has_fused(module: nn.Module) -> bool:
    """Return whether a module implements `fused` for its own `forward`.

    A subclass with another `forward` does not inherit the method. Classes of this package may: what
    they fuse is declared by attributes, and tested.
    """
    if not inspect.isfunction(getattr(type(module), "fused", None)) or "forward" in vars(module):
        return False
    defines = [
        cls for cls in type(module).__mro__ if "forward" in vars(cls) or "fused" in vars(cls)
    ]
    return type(module).__module__.startswith("zoo.") or "fused" in vars(defines[0])


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Return the default values of `forward`, which stay constant while it is traced."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@contextlib.contextmanager
def _default_type_of(model: nn.Module) -> Iterator[None]:
    """Make new layers in the type and on the device of a model."""
    sample = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    before = torch.get_default_dtype()
    torch.set_default_dtype(sample.dtype)
    try:
        with torch.device(sample.device):
            yield
    finally:
        torch.set_default_dtype(before)


def _called(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that `module` can call: its children, and those in lists of children."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += [(f"{name}.{inner}", m) for inner, m in _called(child)]
        else:
            found.append((name, child))
    return found


def _plain_norm(module: Any) -> Any:
    """Return the batch norm with fixed statistics that a module is, or starts with; else None."""
    if is_fixed_batch_norm(module):
        return module
    if type(module) is not BatchNormAct2d or module.running_mean is None:
        return None
    whole: Any = module
    norm = nn.BatchNorm2d(whole.num_features, eps=whole.eps, affine=whole.affine)
    norm = norm.to(device=whole.running_mean.device, dtype=whole.running_mean.dtype)
    norm.load_state_dict({k: v for k, v in whole.state_dict().items() if k in _NORM_KEYS})
    return norm


_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _rest(norm: nn.Module) -> nn.Module:
    """Return the part of a module after its batch norm."""
    if type(norm) is BatchNormAct2d:
        return nn.Sequential(*norm.children())  # dropout and activation
    return nn.Identity()


class _Leaves(fx.Tracer):
    """Records a call of each inner module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return the pairs of layers of which only the second reads the output of the first.

    Layers have the names that `module` gives them, such as `blocks.0`. Both are called once, by
    `module` itself. A module whose control flow depends on values cannot be traced: no pairs.
    """
    try:
        graph = _Leaves().trace(module, concrete_args=_defaults(module))
    except Exception:  # a forward that is given a proxy may raise anything
        return []
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # A layer with two names, or whose tensors are also read outside its call, has other readers.
    names = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def called_once(target: str) -> bool:
        layer = module.get_submodule(target)
        return calls[target] == 1 and names[id(layer)] == 1 and target not in read

    found = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (reader,) = node.users
        plain = reader.op == "call_module" and [*reader.args, *reader.kwargs.values()] == [node]
        if plain and called_once(str(node.target)) and called_once(str(reader.target)):
            found.append((str(node.target), str(reader.target)))
    return found


def replace(module: nn.Module, name: str, part: Any) -> None:
    """Replace the submodule called `name` by `part`."""
    parent, _, child = name.rpartition(".")
    module.get_submodule(parent)._modules[child] = part


def randomize_parameters(model: Model, seed: int = 0) -> Model:
    """Give all parameters and statistics of `model` random values of order one, in place.

    A model with initial weights hides mistakes: its norms do nothing and its layer scales are close
    to zero. Randomise it before comparing two forms of it.

    If many branches of order one would add up to large values, a block lists the norms at their
    ends in `branch_ends`; the weights of these norms are made smaller. If a deep network without
    many shortcuts would see all images alike, a block lists norms in `branch_gains`, whose weights
    are made larger.

    Returns:
        The same model.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        dtype = torch.float32 if like.dtype == torch.float32 else torch.float64
        return torch.randn(like.shape, generator=generator, dtype=dtype).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LayerScale):
                module.gamma.copy_(0.5 + 0.2 * draw(module.gamma))
                continue
            for name, tensor in [*module.named_parameters(recurse=False), *_floats(module)]:
                if name == "running_var":
                    tensor.copy_(0.5 + draw(tensor).abs() / 2)
                elif name == "weight" and tensor.ndim == 1:
                    tensor.copy_(1 + 0.1 * draw(tensor))
                elif tensor.ndim <= 1 or name in getattr(module, "no_decay", ()):
                    tensor.copy_(0.1 * draw(tensor))
                else:
                    tensor.copy_(draw(tensor) * (tensor.shape[0] / tensor.numel()) ** 0.5)
        for module in model.modules():
            for path in getattr(module, "branch_ends", ()):
                module.get_parameter(f"{path}.weight").mul_(0.3)
            for path in getattr(module, "branch_gains", ()):
                module.get_parameter(f"{path}.weight").mul_(2)
    return model


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the floating-point buffers that are part of the state dict."""
    constants = module._non_persistent_buffers_set
    buffers = module.named_buffers(recurse=False)
    return [(n, b) for n, b in buffers if b.is_floating_point() and n not in constants]
