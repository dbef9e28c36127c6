"""Losses by name, and distillation around any of them.

A loss takes logits (N, K) and targets that are either class numbers (N,) or, after mixing, one
distribution for each image (N, K).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import BadInput
from zoo.training.checks import choose

_LOSSES: dict[str, dict[str, Callable[..., nn.Module]]] = {}


def register_loss(
    name: str, build: Callable[..., nn.Module], *, task: str = "classification"
) -> None:
    """Make `train.loss=<name>` known.

    Args:
        name: The name; registering one twice for a task is an error.
        build: Called with what stands in `train.loss_args`, and with `label_smoothing` if it has
            an argument of that name.
        task: What it is for.

    Raises:
        ValueError: The name is taken.
    """
    losses = _LOSSES.setdefault(task, {})
    if name in losses:
        raise ValueError(f"loss {name!r} is registered twice: {losses[name]!r} and {build!r}")
    losses[name] = build


def list_losses(task: str = "classification") -> list[str]:
    """Return the names that `train.loss` takes."""
    return sorted(_LOSSES[task])


def create_loss(
    name: str, *, task: str = "classification", label_smoothing: float = 0.0, **kwargs: Any
) -> nn.Module:
    """Build the loss `name` of a task.

    Raises:
        BadInput: No such loss, or one of `kwargs` is not among its arguments.
    """
    choose("train.loss", name, _LOSSES[task])
    build = _LOSSES[task][name]
    known = set(inspect.signature(build).parameters)
    if "label_smoothing" in known:
        known.remove("label_smoothing")
        build = functools.partial(build, label_smoothing=label_smoothing)
    elif label_smoothing:
        raise BadInput(
            f"train.label_smoothing={label_smoothing} has no effect with train.loss={name}"
        )
    if unknown := set(kwargs) - known:
        raise BadInput(
            f"train.loss_args.{min(unknown)} is not an argument of {name};"
            f" it takes: {', '.join(sorted(known)) or 'none'}"
        )
    return build(**kwargs)


def _cross_entropy(label_smoothing: float) -> nn.Module:
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def _bce(
    label_smoothing: float, target_threshold: float | None = None, sum_classes: bool = False
) -> nn.Module:
    return BinaryCrossEntropy(
        smoothing=label_smoothing, target_threshold=target_threshold, sum_classes=sum_classes
    )


register_loss("cross-entropy", _cross_entropy)
register_loss("bce", _bce)


class Distillation(nn.Module):
    """A loss on the labels plus one on what a teacher says of the same images.

    A student with two heads returns a pair in training: the labels supervise the first, the teacher
    the second. Otherwise both supervise the same logits. DeiT (arXiv 2012.12877), eq. 2 and 3.
    """

    def __init__(
        self,
        base: nn.Module,
        teacher: nn.Module,
        *,
        kind: str,
        alpha: float,
        tau: float = 1.0,
        renormalize: Callable[[Tensor], Tensor] | None = None,
    ):
        """Wrap `base`.

        Args:
            base: The loss on the labels.
            teacher: Frozen; called in eval mode.
            kind: `"hard"`: cross-entropy with the teacher's first choice; `"soft"`: the
                Kullback-Leibler divergence from its distribution at temperature `tau`, times `tau`
                squared, a mean over the images.
            alpha: Share of the teacher.
            tau: Temperature.
            renormalize: Turns the student's input into the teacher's.
        """
        super().__init__()
        self.base = base
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind, self.alpha, self.tau = kind, alpha, tau
        self.renormalize = renormalize

    def train(self, mode: bool = True) -> "Distillation":
        """Switch the mode of the base loss; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor, images: Tensor
    ) -> Tensor:
        """Return the loss; `images` are what the student saw, N C H W."""
        logits, taught = (outputs, outputs) if isinstance(outputs, Tensor) else outputs
        with torch.no_grad():
            said = self.teacher(images if self.renormalize is None else self.renormalize(images))
        return (1 - self.alpha) * self.base(logits, targets) + self.alpha * self._apart(
            taught, said
        )

    def _apart(self, taught: Tensor, said: Tensor) -> Tensor:
        if self.kind == "hard":
            return F.cross_entropy(taught, said.argmax(dim=1))
        ours = F.log_softmax(taught / self.tau, dim=1)
        theirs = F.log_softmax(said / self.tau, dim=1)
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return divergence * self.tau**2
