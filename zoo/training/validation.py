"""Top-1, top-k, loss and confusion matrix of a model on images that it was not trained on."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from zoo.training.tasks import Batches, Result


@dataclass
class Validation(Result):
    """What a model got right.

    Attributes:
        images: How many images.
        top1: Share of images whose first choice is right.
        topk: Share of images whose first `k` choices hold the right one.
        k: 5, or the number of classes where there are fewer.
        loss: Mean cross-entropy, nats.
        confusion: Images of class row taken for class column, K K.
    """

    images: int
    top1: float
    topk: float
    k: int
    loss: float
    confusion: Tensor

    @property
    def score(self) -> float:
        return self.top1

    def words(self) -> str:
        return f"top-1 {self.top1:.2%}, top-{self.k} {self.topk:.2%}, loss {self.loss:.4f}"

    def metrics(self) -> dict[str, float]:
        scalars = {"val/loss": self.loss, "val/top1": self.top1}
        return scalars if self.k == 1 else {**scalars, f"val/top{self.k}": self.topk}


class _Hits(Metric):
    """How often the right class is among the first `k`."""

    full_state_update = False
    hits: Tensor
    images: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        first = logits.topk(self.k, dim=1).indices
        self.hits += (first == targets[:, None]).any(dim=1).sum()
        self.images += len(targets)

    def compute(self) -> Tensor:
        return self.hits / self.images


@torch.inference_mode()
def validate(
    model: Callable[[Tensor], Tensor],
    batches: Batches,
    num_classes: int,
    device: torch.device,
    *,
    limit: int | None = None,
    after_batch: Callable[[], None] = lambda: None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Validation:
    """Run `model` over `batches`; with several processes the result is that of all of them.

    Args:
        model: Images N C H W -> logits N K; in eval mode.
        batches: Images and class numbers; every process its own share.
        num_classes: K.
        device: Where the model is.
        limit: Stop after so many batches.
        after_batch: Called after each batch; may raise to break off.
        memory_format: Layout of the images.
    """
    k = min(5, num_classes)
    top1, topk = _Hits(1).to(device), _Hits(k).to(device)
    confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
    loss = MeanMetric().to(device)
    for images, targets in itertools.islice(batches, limit):
        images = images.to(device, non_blocking=True, memory_format=memory_format)
        targets = targets.to(device, non_blocking=True)
        logits = model(images).float()
        top1.update(logits, targets)
        topk.update(logits, targets)
        confusion.update(logits.argmax(dim=1), targets)
        loss.update(F.cross_entropy(logits, targets), weight=len(targets))
        after_batch()
    matrix = confusion.compute().cpu()
    return Validation(
        images=int(matrix.sum()),
        top1=float(top1.compute()),
        topk=float(topk.compute()),
        k=k,
        loss=float(loss.compute()),
        confusion=matrix,
    )
