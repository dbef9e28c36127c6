"""Heads: from the last feature map to logits."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.folding import Absorbing, absorb, mean_of, merge_pointwise, rebuilt
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, unknown_value

POOLS = ("avg", "max", "")


def check_pool(pool: str, pools: tuple[str, ...] = POOLS) -> str:
    """Return `pool`, or raise `BadInput` if it is not one of `pools`."""
    if pool not in pools:
        raise BadInput(unknown_value("global_pool", pool, pools))
    return pool


def pool_map(x: Tensor, pool: str) -> Tensor:
    """Pool B C H W to B C by `"avg"`, `"max"` or `"token"` (the first position), or not at all."""
    if pool == "avg":
        x = x.mean((2, 3))
    elif pool == "max":
        x = x.amax((2, 3))
    elif pool == "token":
        x = x[:, :, 0, 0]
    return x


# Norms between pooling and classifier, by name.
NORMS: dict[str, Any] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class NormLinear(Absorbing):
    """A norm of the features, then a linear layer.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        norm: `"batch"` (LeViT, arXiv 2104.01136, section 4) or `"layer"`.
        eps: Epsilon of the norm.
        bias: Whether the linear layer has a bias.
    """

    absorbs_before = {"linear": "norm"}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        norm: str = "batch",
        eps: float = 1e-5,
        bias: bool = True,
    ):
        super().__init__()
        self.norm = NORMS[norm](in_features, eps=eps)
        self.linear = nn.Linear(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))  # ... out_features

    def fused(self) -> nn.Module:
        """Fold the norm into the linear layer; of a layer norm, only the affine part."""
        fused = absorb(self)
        return fused.linear if isinstance(fused.norm, nn.Identity) else fused


class ClassifierHead(nn.Module):
    """Global pooling, dropout, one linear classifier.

    Args:
        num_features: Channels of the feature map.
        num_classes: Number of logits; 0 leaves the classifier out.
        pool: `"avg"`, `"max"`, or `""` for no pooling (only without a classifier).
        drop_rate: Probability of the dropout before the classifier.
        norm: `"batch"` or `"layer"`: a norm before the linear layer; `""`: no norm.
        norm_eps: Epsilon of that norm.
        bias: Whether the linear layer has a bias.
    """

    pools = POOLS  # the first is the default of a classifier

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        pool: str = "avg",
        drop_rate: float = 0.0,
        norm: str = "",
        norm_eps: float = 1e-5,
        bias: bool = True,
    ):
        super().__init__()
        self.num_features, self.drop_rate = num_features, drop_rate
        self.norm, self.norm_eps, self.bias = norm, norm_eps, bias
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """Replace the classifier by a new one for `num_classes`, and the pooling if it is given.

        A head without pooling uses the first of `pools` if it gets a classifier.
        """
        if pool is None:
            pool = self.pool or (self.pools[0] if num_classes else "")
        pool = check_pool(pool, self.pools)
        if whole_number(num_classes, "num_classes", 0) and not pool:
            raise BadInput(
                f"num_classes={num_classes} needs pooling; set global_pool to another value than ''"
            )
        self.num_classes, self.pool = num_classes, pool
        self._make_classifiers()

    def _make_classifiers(self) -> None:
        self.fc = self._classifier()

    def _classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity().train(self.training)
        if self.norm:
            layer = NormLinear(
                self.num_features, self.num_classes, self.norm, self.norm_eps, self.bias
            )
            return layer.train(self.training)
        layer = nn.Linear(self.num_features, self.num_classes, bias=self.bias)
        return layer.train(self.training)

    def classifiers(self) -> list[str]:
        """Return the names of the classifier layers."""
        return ["fc.linear" if isinstance(self.fc, NormLinear) else "fc"]

    def pooled(self, x: Tensor) -> Tensor:
        """Pool B C H W to B C; without pooling, return the feature map unchanged."""
        return self.drop(pool_map(x, self.pool))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.pooled(x)  # B C
        return x if pre_logits else self.fc(x)  # B num_classes


class TokenHead(ClassifierHead):
    """A classifier on the class token, for models whose last feature map is a row of tokens.

    The feature map is B C 1 N. The pooling `"token"` reads the first token, others read all tokens.
    """

    pools = ("token", *POOLS)


class TokenLabelHead(TokenHead):
    """A token head that adds half of the largest logits over all tokens (LV-ViT, VOLO)."""

    def _make_classifiers(self) -> None:
        super()._make_classifiers()
        self.aux = self._classifier() if self.pool == "token" else nn.Identity()

    def classifiers(self) -> list[str]:
        return ["fc", "aux"] if self.pool == "token" else ["fc"]

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        y = self.pooled(x)  # B C
        if pre_logits:
            return y
        y = self.fc(y)
        if self.pool == "token" and self.num_classes > 0:
            y = y + 0.5 * self.aux(x.flatten(2).transpose(1, 2)[:, 1:]).amax(1)
        return y


class DenseHead(nn.Module):
    """Base of heads for dense prediction, whose last layer is `fc`; subclasses make it."""

    def make_classifier(self) -> nn.Module:
        """Return a layer that computes `num_classes` values per position."""
        raise NotImplementedError

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """Replace the last layer by a new one for `num_classes`."""
        if pool:
            raise BadInput(f"global_pool={pool!r}: dense prediction has no pooling; leave it out")
        self.num_classes = whole_number(num_classes, "num_classes", 0)
        fc = self.make_classifier() if num_classes else nn.Identity()
        self.fc = fc.train(self.training)

    def classifiers(self) -> list[str]:
        """Return the names of the classifier layers."""
        return ["fc"]


class UpsamplingHead(DenseHead):
    """Transposed convolutions that each double the size, then a 1x1 convolution; no activations.

    Args:
        num_features: Channels of the feature map.
        widths: Channels of the output of each transposed convolution.
        num_classes: Values per position; 0 leaves the last convolution out.
    """

    def __init__(self, num_features: int, widths: Sequence[int], num_classes: int):
        super().__init__()
        if not isinstance(widths, Sequence) or isinstance(widths, str) or not widths:
            raise BadInput(
                f"widths={widths!r}: give a list with the channels after each upsampling"
            )
        outs = [whole_number(width, "widths", 1) for width in widths]
        self.num_features, self.hidden_size = num_features, outs[-1]
        ups = [
            nn.ConvTranspose2d(before, out, 4, stride=2, padding=1)
            for before, out in zip([num_features, *outs], outs, strict=False)
        ]
        self.up = nn.Sequential(*ups)
        self.reset(num_classes)

    def make_classifier(self) -> nn.Module:
        return nn.Conv2d(self.hidden_size, self.num_classes, 1)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.up(x)  # B hidden_size and the larger size
        return x if pre_logits else self.fc(x)

    def fused(self) -> "UpsamplingHead":
        """Merge the last two layers if that takes fewer operations.

        The merged layer has 16 taps per output channel; the transposed convolution has 16 taps per
        channel of `hidden_size`.
        """
        if not isinstance(self.fc, nn.Conv2d):
            return self
        *before, last = self.up
        assert isinstance(last, nn.ConvTranspose2d)
        middle, out = last.out_channels, self.fc.out_channels
        # Multiply-accumulates per position before the upsampling, which is four positions after it.
        if 16 * last.in_channels * out >= 16 * last.in_channels * middle + 4 * middle * out:
            return self
        head = rebuilt(self, up=nn.Sequential(*before).eval(), fc=merge_pointwise(last, self.fc))
        head.hidden_size = last.in_channels
        return head


def _hidden_layer(
    in_features: int, out_features: int, bias: bool, act: type[nn.Module]
) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features, bias=bias), act())


class HiddenHead(ClassifierHead):
    """A classifier with a hidden layer (MobileNetV3, arXiv 1905.02244, table 1).

    Without pooling there is no hidden layer.

    Args:
        num_features: Channels of the feature map.
        num_classes: Number of logits; 0 leaves the classifier out.
        hidden_size: Width of the hidden layer.
        bias: Whether the hidden layer has a bias.
        act: Class of the activation of the hidden layer.
        **settings: As for `ClassifierHead`; the dropout follows the hidden layer.
    """

    hidden_size: int
    hidden_bias: bool
    hidden_act: type[nn.Module]

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden_size: int,
        bias: bool = True,
        act: type[nn.Module] = nn.Hardswish,
        **settings: Any,
    ):
        make = partial(_hidden_layer, num_features, hidden_size, bias, act)
        self.__dict__.update(hidden_size=hidden_size, make_hidden=make)  # the layers follow below
        super().__init__(num_features, num_classes, **settings)

    def _make_classifiers(self) -> None:
        self.fc: nn.Module = nn.Identity()
        if self.num_classes:
            self.fc = nn.Linear(self.hidden_size, self.num_classes)
        if not self.pool:
            self.hidden: nn.Module = nn.Identity()
        elif not isinstance(getattr(self, "hidden", None), nn.Sequential):
            self.hidden = self.__dict__["make_hidden"]()
        for part in (self.fc, self.hidden):
            part.train(self.training)

    def pooled(self, x: Tensor) -> Tensor:
        """Pool B C H W to B hidden_size; without pooling, return the feature map unchanged."""
        return self.drop(self.hidden(pool_map(x, self.pool)))


class DistilledHead(ClassifierHead):
    """Two classifiers on one vector: one for labels, one for a teacher (DeiT, arXiv 2012.12877).

    The output is the mean of both; during training with `distilled_training`, it is the pair.
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
        x = self.pooled(x)  # B C
        if pre_logits:
            return x
        y, y_dist = self.fc(x), self.fc_dist(x)  # B num_classes
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return y, y_dist
        return (y + y_dist) / 2

    def fused(self) -> ClassifierHead:
        """Return one classifier with the mean weights.

        Raises:
            BadInput: The classifiers are not linear, so no single one computes their mean.
        """
        single = ClassifierHead(self.num_features, 0, pool=self.pool, drop_rate=self.drop_rate)
        single.num_classes = self.num_classes
        if self.num_classes:
            layers: list[Any] = [self.fc, self.fc_dist]
            if not all(isinstance(layer, nn.Linear) for layer in layers):
                kinds = " and ".join(type(layer).__name__ for layer in layers)
                raise BadInput(
                    f"cannot fuse the classifiers {kinds} into one, because they are not"
                    " plain linear layers; use the model unfused"
                )
            single.fc = mean_of(layers)
        return single.train(self.training)
