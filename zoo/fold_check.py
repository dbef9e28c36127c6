"""Whether folds leave a model's outputs as they are, decided by running it on random input."""

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zoo.errors import BadInput

Fuse = Callable[[nn.Module, Collection[str]], nn.Module]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TOLERANCE, _ROUNDING = 1e-3, 1e-5  # of the spread and of the magnitude of an output, in float32
_SIDES = (64, 224, 32, 256, 128, 384, 512)  # image sizes to try if a model does not state one


class ReferenceRun:
    """A run of the original model: its outputs, and the rank of each linear layer's output.

    The model runs when something is asked for the first time, on a copy.

    Args:
        model: The model, in evaluation mode.
        example_input: As in `reparameterize`.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        leaves = tree_leaves(example_input)
        if example_input is not None and not any(isinstance(x, Tensor) for x in leaves):
            raise BadInput(
                f"example_input={type(example_input).__name__} is neither a tensor nor a tuple of "
                "arguments that contains one"
            )
        self.model, self.example_input = model, example_input
        self.has_run = False
        self.ranks: dict[str, int] = {}
        self.arguments: tuple[Any, ...] | None = None
        self.outputs: list[Tensor] = []

    def rank_of(self, layer: str) -> int | None:
        """Return the rank of the output of a linear layer; None if it is not known."""
        self._run()
        return self.ranks.get(layer)

    def wrong_folds(self, folds: list[str], fuse: Fuse) -> tuple[dict[str, str], bool]:
        """Return the folds that must be undone, and whether the forms were compared.

        Args:
            folds: Names of all folds.
            fuse: `(model, undone) -> fused copy`, with the names of the folds to leave out.

        Returns:
            The reason by the name of the fold; and whether the model runs on some input.
        """
        self._run()
        if self.arguments is None:
            reason = "the model does not run on random images; give example_input"
            return dict.fromkeys(folds, reason), False
        kept = self._compatible(folds, folds, fuse)
        wrong = [name for name in folds if name not in kept]
        return dict.fromkeys(wrong, "folding it changes the outputs"), True

    def _compatible(
        self, folds: list[str], every: list[str], fuse: Fuse, others: Collection[str] = ()
    ) -> list[str]:
        """Return those of `folds` that, together with `others`, change no output, by halving."""
        if self._agrees({*every} - {*folds, *others}, fuse):
            return folds
        if len(folds) == 1:
            return []
        middle = len(folds) // 2
        kept = self._compatible(folds[:middle], every, fuse, others)
        return kept + self._compatible(folds[middle:], every, fuse, [*others, *kept])

    def _agrees(self, undone: Collection[str], fuse: Fuse) -> bool:
        """Return whether the fused model computes the same without the folds in `undone`."""
        try:
            fused = fuse(self.model, undone)
            if _same(self.outputs, _outputs(fused, self.arguments), _TOLERANCE, _ROUNDING):
                return True
            # A deep model may amplify rounding errors: decide in double precision.
            double, arguments = self._double
            fused = fuse(double, undone)
            return _same(_outputs(double, arguments), _outputs(fused, arguments), 1e-6, 1e-9)
        except Exception:  # a wrong fold may break the model in any way
            return False

    @functools.cached_property
    def _double(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """Return a copy of the model and its arguments in double precision.

        Some weights make a model chaotic, so that even rounding in double precision changes all
        outputs. Such a copy gets initial weights: whether a fold is right does not depend on them.
        """
        double = copy.deepcopy(self.model).double()
        arguments = tuple(_as_double(x) for x in self.arguments or ())
        nudged = tuple(x * (1 + 1e-13) if isinstance(x, Tensor) else x for x in arguments)
        if not _same(_outputs(double, arguments), _outputs(double, nudged), 1e-7, 1e-10):
            _reset(double)
        return double, arguments

    def _run(self) -> None:
        if self.has_run:
            return
        self.has_run = True
        model = copy.deepcopy(self.model)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._note_rank(name))
        if self.example_input is not None:
            given = self.example_input
            given = given if isinstance(given, tuple) else (given,)
            try:
                self.outputs = _outputs(model, given)
            except Exception as error:  # the model raises errors of any kind
                raise BadInput(f"the model does not run on example_input: {error}") from error
            self.arguments = given
            return
        for image in _random_images(model):
            self.ranks.clear()
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.outputs = _outputs(model, (image,))
                if self.outputs:
                    self.arguments = (image,)
                    return
        self.ranks.clear()

    def _note_rank(self, name: str) -> Any:
        def note(module: nn.Module, arguments: Any, output: Any) -> None:
            self.ranks[name] = output.ndim

        return note


def _random_images(model: nn.Module) -> Iterator[Tensor]:
    """Yield random inputs that a convolutional model may take, most likely ones first.

    Whether a model of linear layers takes vectors or tokens cannot be guessed.
    """
    kinds = (*_CONVOLUTIONS, *_TRANSPOSED)
    first: Any = next((m for m in model.modules() if isinstance(m, kinds)), None)
    if first is None:
        return
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    stated: Any = getattr(model, "in_chans", None)
    channels = stated if isinstance(stated, int) else first.in_channels
    axes = first.weight.ndim - 2
    cfg: Any = getattr(model, "pretrained_cfg", None)  # of timm's models
    default = cfg.get("input_size", ()) if isinstance(cfg, dict) else ()
    sizes = [tuple(default[1:])] if len(default) == axes + 1 else []
    sizes += [(side,) * axes for side in (_SIDES if axes < 3 else (32, 64, 16))]
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.randn(2, channels, *size, generator=generator)
        # Images of different brightness: a deep network may see plain noise as always the same.
        shift = torch.randn(2, channels, *[1] * axes, generator=generator)
        yield (images + 2 * shift).to(like)


def _outputs(model: nn.Module, arguments: Any) -> list[Tensor]:
    """Return all tensors of floating-point numbers that a model returns."""
    with torch.no_grad():
        leaves = tree_leaves(model(*arguments))
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


def _same(want: list[Tensor], have: list[Tensor], tolerance: float, rounding: float) -> bool:
    """Return whether outputs agree, relative to their spread and their magnitude."""
    if [x.shape for x in want] != [x.shape for x in have]:
        return False
    for a, b in zip(want, have, strict=True):
        a, b = a.double().nan_to_num(), b.double().nan_to_num()
        spread = float(a.std()) if a.numel() > 1 else 0.0
        allowed = tolerance * spread + rounding * float(a.abs().max() if a.numel() else 0)
        if a.numel() and not float((a - b).abs().max()) <= allowed:
            return False
    return True


def _reset(model: nn.Module) -> None:
    """Give a model initial weights, and its batch norms statistics close to the initial ones."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            mean: Any = getattr(module, "running_mean", None)
            if isinstance(mean, Tensor):
                mean.normal_(0, 0.1)


def _as_double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
