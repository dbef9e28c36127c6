"""Classification losses, a registry of the losses of all tasks, and distillation.

A classification loss takes logits N K, and targets that are class numbers N or, after mixing,
distributions N K.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbone import Backbone
from zoo.data.samplers import Key
from zoo.errors import BadInput, first_line, unknown_value
from zoo.training.checks import check_choice, check_value
from zoo.training.logit_store import LogitStore, divergence

_LOSSES: dict[str, dict[str, Callable[..., nn.Module]]] = {}


def register_loss(
    name: str, build: Callable[..., nn.Module], *, task: str = "classification"
) -> None:
    """Register a loss, which makes it available as `train.loss=<name>`.

    Args:
        name: The name, unique for the task.
        build: Builds the loss from `train.loss_args`, and from `label_smoothing` if it has a
            parameter of that name.
        task: The task of the loss.

    Raises:
        ValueError: The name is already registered.
    """
    losses = _LOSSES.setdefault(task, {})
    if name in losses:
        raise ValueError(f"loss {name!r} is registered twice: {losses[name]!r} and {build!r}")
    losses[name] = build


def list_losses(task: str = "classification") -> list[str]:
    """Return the values of `train.loss` for a task."""
    return sorted(_LOSSES[task])


def create_loss(
    name: str,
    *,
    task: str = "classification",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build the loss `name` of a task.

    Args:
        name: A name of `list_losses`.
        task: The task of the loss.
        label_smoothing: Share of each target that is spread over all classes.
        class_weights: A weight for each of the K classes; None for equal ones.
        **kwargs: Arguments of that loss.

    Raises:
        BadInput: The loss is unknown, or does not take one of the arguments.
    """
    check_choice("train.loss", name, _LOSSES[task])
    build = _LOSSES[task][name]
    parameters = set(inspect.signature(build).parameters)
    if "label_smoothing" in parameters:
        parameters.remove("label_smoothing")
        build = functools.partial(build, label_smoothing=label_smoothing)
    elif label_smoothing:
        raise BadInput(
            f"train.label_smoothing={label_smoothing} has no effect with train.loss={name}; leave"
            " it out"
        )
    if "class_weights" in parameters:
        parameters.remove("class_weights")
        build = functools.partial(build, class_weights=class_weights)
    elif class_weights is not None:
        raise BadInput(
            f"train.class_weights has no effect with train.loss={name}; use"
            " train.loss=cross-entropy or focal, or train.sampler=balanced"
        )
    if unknown := kwargs.keys() - parameters:
        where = f" of train.loss={name}"
        raise BadInput(
            unknown_value("train.loss_args", min(unknown), sorted(parameters), where=where)
        )
    try:
        return build(**kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"train.loss={name} does not accept train.loss_args={kwargs}: {first_line(error)}"
        ) from error


def _cross_entropy(label_smoothing: float, class_weights: Tensor | None = None) -> nn.Module:
    return nn.CrossEntropyLoss(class_weights, label_smoothing=label_smoothing)


class FocalLoss(nn.Module):
    """Cross-entropy that counts hard images more: each term is multiplied by (1 - p) ** gamma.

    Focal loss, arXiv 1708.02002, equation 5, for K classes; p is the probability of the class of
    the term. With gamma 0 it is the cross-entropy, also with class weights.

    Args:
        gamma: How much less easy images count.
        label_smoothing: Share of each target that is spread over all classes.
        class_weights: A weight for each of the K classes; None for equal ones.

    Raises:
        BadInput: `gamma` is negative, or not a finite number.
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ):
        super().__init__()
        is_valid = isinstance(gamma, int | float) and 0 <= gamma < math.inf
        check_value("train.loss_args.gamma", gamma, is_valid, "a number, at least 0")
        self.gamma, self.label_smoothing = gamma, label_smoothing
        self.register_buffer("weight", class_weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: N K.
            targets: Class numbers N, or distributions N K.
        """
        log_p = F.log_softmax(logits, dim=1)
        weights = torch.ones_like(log_p[0]) if self.weight is None else self.weight.to(log_p)
        if targets.ndim == 1:
            total = weights[targets].sum()
            targets = F.one_hot(targets, logits.shape[1]).to(log_p)
        else:
            total = torch.full_like(log_p[0, 0], len(logits))
        smoothing = self.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
        # A base of 0 has no finite gradient for gamma below 1.
        rest = (1 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).eps)
        return (weights * targets * rest**self.gamma * -log_p).sum() / total


def _bce(
    label_smoothing: float, target_threshold: float | None = None, sum_classes: bool = False
) -> nn.Module:
    is_share = target_threshold is None or (
        isinstance(target_threshold, int | float) and 0 <= target_threshold < 1
    )
    key = "train.loss_args.target_threshold"
    check_value(key, target_threshold, is_share, "at least 0 and below 1")
    is_flag = isinstance(sum_classes, bool)
    check_value("train.loss_args.sum_classes", sum_classes, is_flag, "true or false")
    return BinaryCrossEntropy(
        smoothing=label_smoothing, target_threshold=target_threshold, sum_classes=sum_classes
    )


class BiasLoss(nn.Module):
    """Cross-entropy of each image, weighted by the variance of its features.

    Bias loss, arXiv 2107.11170, section 3. With v the variance of all values of an image's last
    feature map, u = (v - least) / (max - min) and w = exp(alpha * u) - beta. The loss is the mean
    of w times the cross-entropy; w has no gradient. Maximum and minimum are those of the batch. If
    they are equal, as in a batch of one image, u is 0.

    Args:
        alpha: Growth rate of the weight.
        beta: Constant subtracted from the weight.
        mode: `"global"`: `least` is the smallest variance of all batches so far, in all processes;
            `"local"`: it is the smallest variance of the batch.
        label_smoothing: Label smoothing of the cross-entropy.

    Raises:
        BadInput: The mode is unknown, or `alpha` or `beta` is not a finite number.
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
        check_choice("train.loss_args.mode", mode, self.modes)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise BadInput(f"train.loss_args.{name}={value!r} must be a finite number")
        self.alpha, self.beta, self.mode = alpha, beta, mode
        self.label_smoothing = label_smoothing
        self._features: Tensor | None = None
        self.register_buffer("least", torch.tensor(1e5))  # above any variance, as in the paper

    def watch(self, model: nn.Module) -> None:
        """Read the last feature map of every training batch from the input of the model's head.

        Raises:
            BadInput: The model does not belong to this package.
        """
        if not isinstance(model, Backbone):
            raise BadInput(
                "train.loss=bias reads the last feature map of a model of this package, and"
                f" {type(model).__name__} is not one; choose another loss or model"
            )
        model.head.register_forward_pre_hook(self._keep_features)

    def _keep_features(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        if head.training:
            self._features = inputs[0].detach()

    def weights(self, features: Tensor) -> Tensor:
        """Return the weight of each image, and update `least` in global mode.

        Args:
            features: The last feature map, N C H W or N ...
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        variances = features.detach().flatten(1).to(dtype).var(dim=1)
        low, high = variances.min(), variances.max()
        least = low
        if self.mode == "global":
            least = torch.minimum(self.least.to(low), low)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
            self.least = least.to(self.least)
        spread = high - low
        scaled = torch.where(spread > 0, (variances - least) / spread, torch.zeros_like(variances))
        return (self.alpha * scaled).exp() - self.beta

    def forward(self, logits: Tensor, targets: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the loss.

        Args:
            logits: N K.
            targets: Class numbers N, or distributions N K.
            features: The last feature map; None for that of the watched model.
        """
        features = self._features if features is None else features
        if features is None or len(features) != len(logits):
            raise BadInput("the bias loss needs the features of the batch; call watch(model) first")
        self._features = None
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return (self.weights(features).to(losses) * losses).mean()


register_loss("cross-entropy", _cross_entropy)
register_loss("bce", _bce)
register_loss("bias", BiasLoss)
register_loss("focal", FocalLoss)


class Distillation(nn.Module):
    """A loss on the labels plus a loss on a teacher's predictions for the same images.

    A student with two heads returns a pair in training: the labels supervise the first head, the
    teacher supervises the second. With one head, both supervise the same logits. DeiT (arXiv
    2012.12877), equations 2 and 3.
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
        """Combine `base` with a teacher.

        Args:
            base: The loss on the labels.
            teacher: The teacher, which is frozen and always in evaluation mode.
            kind: `"hard"`: cross-entropy with the teacher's top class; `"soft"`: Kullback-Leibler
                divergence from the teacher's distribution at temperature `tau`, times `tau`
                squared, averaged over the images.
            alpha: Weight of the teacher's loss; the labels have `1 - alpha`.
            tau: Temperature.
            renormalize: Converts the student's input to the teacher's normalisation; None if both
                have the same.
        """
        super().__init__()
        self.base = base
        self.teacher = teacher.eval().requires_grad_(False)
        self.kind, self.alpha, self.tau = kind, alpha, tau
        self.renormalize = renormalize

    def train(self, mode: bool = True) -> "Distillation":
        """Set the mode of the base loss; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor, images: Tensor
    ) -> Tensor:
        """Return the loss for the student's outputs on `images`, N C H W."""
        logits, distilled = (outputs, outputs) if isinstance(outputs, Tensor) else outputs
        with torch.no_grad():
            teacher = self.teacher(images if self.renormalize is None else self.renormalize(images))
        distillation = self._distillation_loss(distilled, teacher)
        return (1 - self.alpha) * self.base(logits, targets) + self.alpha * distillation

    def _distillation_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss between the logits of student and teacher, N K each."""
        if self.kind == "hard":
            return F.cross_entropy(student, teacher.argmax(dim=1))
        log_p = F.log_softmax(student / self.tau, dim=1)
        log_q = F.log_softmax(teacher / self.tau, dim=1)
        divergence = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        return divergence * self.tau**2


class StoredDistillation(nn.Module):
    """A loss on the labels plus the divergence from stored predictions of a teacher.

    With all classes stored it equals `Distillation` of the kind `"soft"` at temperature 1.

    Args:
        base: The loss on the labels.
        store: The predictions.
        alpha: Weight of the teacher's loss; the labels have `1 - alpha`.
    """

    def __init__(self, base: nn.Module, store: LogitStore, *, alpha: float) -> None:
        super().__init__()
        self.base, self.store, self.alpha = base, store, alpha

    def forward(
        self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor, keys: Sequence[Key]
    ) -> Tensor:
        """Return the loss for the student's outputs on the images `keys`, all of one epoch."""
        logits, distilled = (outputs, outputs) if isinstance(outputs, Tensor) else outputs
        teacher = self.store.probabilities(keys[0][0], [index for _, index in keys])
        loss = divergence(distilled, teacher)
        return (1 - self.alpha) * self.base(logits, targets) + self.alpha * loss
