"""What turns the last map into logits."""

import torch
from torch import Tensor, nn

from zoo.blocks.folding import mean_of
from zoo.errors import BadInput

POOLS = ("avg", "max", "")


def check_pool(pool: str) -> str:
    """Return `pool`, or raise `BadInput` if there is no such pooling."""
    if pool not in POOLS:
        names = ", ".join(repr(name) for name in POOLS)
        raise BadInput(f"global_pool={pool!r}: there are {names} (the last: none)")
    return pool


class ClassifierHead(nn.Module):
    """Global pooling, dropout, one linear classifier.

    Args:
        num_features: Channels of the map.
        num_classes: Number of logits; 0 leaves the classifier out.
        pool: `"avg"`, `"max"`, or `""` for none (only without a classifier).
        drop_rate: Probability of the dropout before the classifier.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, pool: str = "avg", drop_rate: float = 0.0
    ):
        super().__init__()
        self.num_features, self.drop_rate = num_features, drop_rate
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """Replace the classifier by a fresh one for `num_classes`, and the pooling if given."""
        self.pool = check_pool(self.pool if pool is None else pool)
        if num_classes < 0:
            raise BadInput(f"num_classes={num_classes}: must not be negative")
        if num_classes and not self.pool:
            raise BadInput(f"num_classes={num_classes} needs a global_pool; '' goes with 0 classes")
        self.num_classes = num_classes
        self._make_classifiers()

    def _make_classifiers(self) -> None:
        self.fc = self._classifier()

    def _classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        return nn.Linear(self.num_features, self.num_classes)

    def classifiers(self) -> list[str]:
        """Names of the classifying layers."""
        return ["fc"]

    def pooled(self, x: Tensor) -> Tensor:
        """B C H W -> B C, or the map itself where there is no pooling."""
        if self.pool == "avg":
            x = x.mean((2, 3))
        elif self.pool == "max":
            x = x.amax((2, 3))
        return self.drop(x)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.pooled(x)
        return x if pre_logits else self.fc(x)


class DistilledHead(ClassifierHead):
    """Two classifiers on one vector: for the labels and for a teacher's (DeiT, arXiv 2012.12877).

    The output is their mean; while training with `distilled_training` it is the pair.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, pool: str = "avg", drop_rate: float = 0.0
    ):
        super().__init__(num_features, num_classes, pool=pool, drop_rate=drop_rate)
        self.distilled_training = False

    def _make_classifiers(self) -> None:
        self.fc = self._classifier()
        self.fc_dist = self._classifier()

    def classifiers(self) -> list[str]:
        return ["fc", "fc_dist"]

    def forward(self, x: Tensor, pre_logits: bool = False):
        x = self.pooled(x)
        if pre_logits:
            return x
        y, y_dist = self.fc(x), self.fc_dist(x)
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return y, y_dist
        return (y + y_dist) / 2

    def fused(self) -> ClassifierHead:
        """One classifier with the mean weights."""
        single = ClassifierHead(self.num_features, 0, pool=self.pool, drop_rate=self.drop_rate)
        single.num_classes = self.num_classes
        if isinstance(self.fc, nn.Linear) and isinstance(self.fc_dist, nn.Linear):
            single.fc = mean_of([self.fc, self.fc_dist])
        return single.train(self.training)
