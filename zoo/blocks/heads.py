"""What turns the last map into logits."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.folding import (
    affine_inputs,
    batch_norm_affine,
    is_fixed_batch_norm,
    mean_of,
    rebuilt,
    split_affine,
)
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput

POOLS = ("avg", "max", "")


def check_pool(pool: str, pools: tuple[str, ...] = POOLS) -> str:
    """Return `pool`, or raise `BadInput` if it is none of `pools`."""
    if pool not in pools:
        names = ", ".join(repr(name) for name in pools)
        raise BadInput(f"global_pool={pool!r}: there are {names} (the last: none)")
    return pool


def pool_map(x: Tensor, pool: str) -> Tensor:
    """B C H W -> B C by `"avg"`, `"max"` or `"token"` (the first position), or the map itself."""
    if pool == "avg":
        x = x.mean((2, 3))
    elif pool == "max":
        x = x.amax((2, 3))
    elif pool == "token":
        x = x[:, :, 0, 0]
    return x


# Norms of the features, between pooling and classifier, by name.
NORMS: dict[str, Any] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class NormLinear(nn.Module):
    """A norm of the features, then a linear layer.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        norm: `"batch"` (LeViT, arXiv 2104.01136, section 4) or `"layer"`.
        eps: Of the norm.
    """

    def __init__(self, in_features: int, out_features: int, norm: str = "batch", eps: float = 1e-5):
        super().__init__()
        self.norm = NORMS[norm](in_features, eps=eps)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    def fused(self) -> nn.Module:
        """The norm in the linear layer, of a layer norm its affine part."""
        if isinstance(self.norm, nn.LayerNorm) and self.norm.elementwise_affine:
            plain, *affine = split_affine(self.norm)
            return rebuilt(self, norm=plain, linear=affine_inputs(self.linear, *affine))
        if not is_fixed_batch_norm(self.norm):
            return self
        return affine_inputs(self.linear, *batch_norm_affine(self.norm))


class ClassifierHead(nn.Module):
    """Global pooling, dropout, one linear classifier.

    Args:
        num_features: Channels of the map.
        num_classes: Number of logits; 0 leaves the classifier out.
        pool: `"avg"`, `"max"`, or `""` for none (only without a classifier).
        drop_rate: Probability of the dropout before the classifier.
        norm: Put a `"batch"` or `"layer"` norm in front of the linear layer; `""`: none.
        norm_eps: Of that norm.
    """

    pools = POOLS  # the first is taken where a classifier needs one and none was chosen

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        pool: str = "avg",
        drop_rate: float = 0.0,
        norm: str = "",
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.num_features, self.drop_rate = num_features, drop_rate
        self.norm, self.norm_eps = norm, norm_eps
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """Replace the classifier by a fresh one for `num_classes`, and the pooling if given.

        A classifier for a head without pooling brings the first of `pools`.
        """
        if pool is None:
            pool = self.pool or (self.pools[0] if num_classes else "")
        pool = check_pool(pool, self.pools)
        if whole_number(num_classes, "num_classes", 0) and not pool:
            raise BadInput(f"num_classes={num_classes} needs a global_pool; '' goes with 0 classes")
        self.num_classes, self.pool = num_classes, pool
        self._make_classifiers()

    def _make_classifiers(self) -> None:
        self.fc = self._classifier()

    def _classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity().train(self.training)
        if self.norm:
            layer = NormLinear(self.num_features, self.num_classes, self.norm, self.norm_eps)
            return layer.train(self.training)
        return nn.Linear(self.num_features, self.num_classes).train(self.training)

    def classifiers(self) -> list[str]:
        """Names of the classifying layers."""
        return ["fc.linear" if isinstance(self.fc, NormLinear) else "fc"]

    def pooled(self, x: Tensor) -> Tensor:
        """B C H W -> B C, or the map itself where there is no pooling."""
        return self.drop(pool_map(x, self.pool))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.pooled(x)
        return x if pre_logits else self.fc(x)


class TokenHead(ClassifierHead):
    """A classifier on the class token, for models whose last map is a row of tokens, B C 1 N.

    `"token"` takes the first of them; the other poolings take all.
    """

    pools = ("token", *POOLS)


class SequenceHead(ClassifierHead):
    """A classifier on a weighted mean of all positions (sequence pooling, arXiv 2104.05704, 3.2).

    `"attention"` learns to weight them: softmax over positions of a linear layer's output.
    """

    pools = ("attention", *POOLS)

    def _make_classifiers(self) -> None:
        super()._make_classifiers()
        learnt = self.pool == "attention"
        if not learnt:
            self.attention_pool: nn.Module = nn.Identity()
        elif not isinstance(getattr(self, "attention_pool", None), nn.Linear):
            self.attention_pool = nn.Linear(self.num_features, 1).train(self.training)

    def pooled(self, x: Tensor) -> Tensor:
        """B C H W -> B C, or the map itself where there is no pooling."""
        if self.pool != "attention":
            return self.drop(pool_map(x, self.pool))
        x_BNC = x.flatten(2).transpose(1, 2)
        weights_B1N = self.attention_pool(x_BNC).transpose(1, 2).softmax(dim=-1)
        return self.drop((weights_B1N @ x_BNC).squeeze(1))


class HiddenHead(ClassifierHead):
    """A classifier on a hidden layer of the pooled map (MobileNetV3, arXiv 1905.02244, table 1).

    What the classifier sees is `hidden_size` wide. Without pooling there is no hidden layer.

    Args:
        num_features: Channels of the map.
        num_classes: Number of logits; 0 leaves the classifier out.
        hidden_size: Width of the hidden layer.
        **settings: As of `ClassifierHead`; the dropout stands after the hidden layer.
    """

    hidden_size: int

    def __init__(self, num_features: int, num_classes: int, *, hidden_size: int, **settings):
        self.__dict__["hidden_size"] = hidden_size  # the next line makes the layers
        super().__init__(num_features, num_classes, **settings)

    def _make_classifiers(self) -> None:
        self.fc: nn.Module = nn.Identity()
        if self.num_classes:
            self.fc = nn.Linear(self.hidden_size, self.num_classes)
        if not self.pool:
            self.hidden: nn.Module = nn.Identity()
        elif not isinstance(getattr(self, "hidden", None), nn.Sequential):
            self.hidden = nn.Sequential(
                nn.Linear(self.num_features, self.hidden_size), nn.Hardswish()
            )
        for layer in (self.fc, self.hidden):
            layer.train(self.training)

    def pooled(self, x: Tensor) -> Tensor:
        """B C H W -> B hidden_size, or the map itself where there is no pooling."""
        return self.drop(self.hidden(pool_map(x, self.pool)))


class DistilledHead(ClassifierHead):
    """Two classifiers on one vector: for the labels and for a teacher's (DeiT, arXiv 2012.12877).

    The output is their mean; while training with `distilled_training` it is the pair.
    """

    def __init__(self, num_features: int, num_classes: int, **settings):
        super().__init__(num_features, num_classes, **settings)
        self.distilled_training = False

    def _make_classifiers(self) -> None:
        self.fc = self._classifier()
        self.fc_dist = self._classifier()

    def classifiers(self) -> list[str]:
        names = super().classifiers()
        return [name.replace("fc", fc, 1) for fc in ("fc", "fc_dist") for name in names]

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
