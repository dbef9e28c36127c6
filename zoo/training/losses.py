"""Losses by name, and distillation around any of them.

A loss takes logits (N, K) and targets that are either class numbers (N,) or, after mixing, one
distribution for each image (N, K).
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbone import Backbone
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


class BiasLoss(nn.Module):
    """Cross-entropy of each image, weighted by how much its features vary.

    Bias loss, arXiv 2107.11170, section 3: with v the variance of all values of the last map of an
    image, u = (v - least) / (max - min) and w = exp(alpha * u) - beta; the loss is the mean of
    w times the cross-entropy, and w has no gradient. Maximum and minimum are those of the batch;
    where they are equal, as in a batch of one image, u is 0.

    Args:
        alpha: How fast the weight grows.
        beta: What is taken off it.
        mode: `"global"`: `least` is the smallest variance of all batches so far, of all processes;
            `"local"`: of this batch.
        label_smoothing: As in cross-entropy.

    Raises:
        BadInput: A mode that there is not, or a setting that is no finite number.
    """

    least: Tensor
    modes = ("global", "local")

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.3,
        mode: str = "global",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if mode not in self.modes:
            raise BadInput(f"train.loss_args.mode={mode!r}: there are 'global' and 'local'")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise BadInput(f"train.loss_args.{name}={value!r}: must be a number")
        self.alpha, self.beta, self.mode = alpha, beta, mode
        self.label_smoothing = label_smoothing
        self._features: Tensor | None = None
        self.register_buffer("least", torch.tensor(1e5))  # more than any variance, as published

    def watch(self, model: nn.Module) -> None:
        """Take the features of every training batch from `model`: what its head reads.

        Raises:
            BadInput: The model has no head that reads a map.
        """
        if not isinstance(model, Backbone):
            raise BadInput(
                f"train.loss=bias reads the last map of a model of this package;"
                f" {type(model).__name__} is none"
            )
        model.head.register_forward_pre_hook(self._keep)

    def _keep(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        if head.training:
            self._features = inputs[0].detach()

    def weights(self, features: Tensor) -> Tensor:
        """Return the weight of each image, and note the least variance.

        Args:
            features: The last map, N C H W or any other N ...
        """
        varied = features.detach().flatten(1).to(self._precision(features)).var(dim=1)
        low, high = varied.min(), varied.max()
        least = low
        if self.mode == "global":
            least = torch.minimum(self.least.to(low), low)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
            self.least = least.to(self.least)
        spread = high - low
        scaled = torch.where(spread > 0, (varied - least) / spread, torch.zeros_like(varied))
        return (self.alpha * scaled).exp() - self.beta

    @staticmethod
    def _precision(features: Tensor) -> torch.dtype:
        return torch.promote_types(features.dtype, torch.float32)

    def forward(self, logits: Tensor, targets: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the loss.

        Args:
            logits: N K.
            targets: N class numbers, or distributions N K.
            features: The last map; by default what was seen of the model that is watched.
        """
        features = self._features if features is None else features
        if features is None or len(features) != len(logits):
            raise BadInput("the bias loss needs the features of the batch: call watch(model) first")
        self._features = None
        each = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return (self.weights(features).to(each) * each).mean()


register_loss("cross-entropy", _cross_entropy)
register_loss("bce", _bce)
register_loss("bias", BiasLoss)


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
