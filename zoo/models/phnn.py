"""PHNN: ResNet and VGG for small images whose weights are sums of Kronecker products.

Paper: Grassucci et al., "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
       Convolutions" (arXiv 2110.04176), eq. 5 to 7; the linear layer is that of Zhang et al.,
       "Beyond Fully-Connected Layers with Quaternions" (arXiv 2102.08597).
Code:  github.com/eleGAN23/HyperNets @ c859ffe2319a (MIT).
Here:  images have three channels. For n = 2 and 4 the authors put a channel of zeros in front; here
       the weights that would read it are left out of the convolution. `in_chans=4` is the public
       model. Any size, because the pooling before the classifier is global.
       A convolution has a bias that has no effect, as in the public code; fusing drops it.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import Activation, activation
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import ClassifierHead, HiddenHead
from zoo.blocks.pools import HalvingPool
from zoo.blocks.precision import outside_autocast
from zoo.blocks.residual import resnet_unit
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State


def kronecker_sum(mix: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of n Kronecker products on the first two axes (eq. 5).

    Args:
        mix: n n n; one matrix for each product.
        weight: out in/n and further axes; the first out/n rows belong to the first product.

    Returns:
        out in and the further axes; in the precision of `weight`, in autocast, too, as the public
        code multiplies element by element.
    """
    if torch.jit.is_scripting():  # where autocast cannot be left
        return _kronecker_sum(mix, weight)
    return outside_autocast(_kronecker_sum, mix, weight)


def _kronecker_sum(mix: Tensor, weight: Tensor) -> Tensor:
    n, out, inputs = mix.shape[0], weight.shape[0], weight.shape[1]
    parts = weight.view(n, out // n, inputs, -1)
    whole = torch.einsum("mpr,mqsk->pqrsk", mix, parts)  # n out/n n in/n K
    return whole.reshape([out, n * inputs] + list(weight.shape[2:]))


torch.fx.wrap("kronecker_sum")


def _initialise(mix: nn.Parameter, weight: nn.Parameter) -> None:
    nn.init.xavier_uniform_(mix)
    nn.init.xavier_uniform_(weight.unflatten(0, (mix.shape[0], -1)).data)


def _check_n(n: int, channels: int, name: str) -> None:
    if channels % n:
        raise BadInput(f"{name}={channels} is not divisible by n={n}")


class PHConv(nn.Module):
    """A convolution without bias whose weight is a sum of n Kronecker products.

    If `in_channels` is not a multiple of n, channels of zeros are imagined in front of the input.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of n.
        n: Number of products, and the factor by which the weight has fewer parameters.
        kernel_size: Odd; the padding keeps the size before the stride.
        stride: Stride of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, n: int, kernel_size: int = 1, stride: int = 1
    ):
        super().__init__()
        _check_n(n, out_channels, "out_channels")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, kernel_size // 2
        self.missing = -in_channels % n
        inputs = (in_channels + self.missing) // n
        self.mix = nn.Parameter(torch.empty(n, n, n))
        self.weight = nn.Parameter(torch.empty(out_channels, inputs, kernel_size, kernel_size))
        bound = in_channels**-0.5
        self.bias = nn.Parameter(
            torch.empty(out_channels).uniform_(-bound, bound), requires_grad=False
        )  # without effect, as in the public code
        _initialise(self.mix, self.weight)

    def dense(self) -> Tensor:
        """Return the weight as a convolution has it: out in k k."""
        return kronecker_sum(self.mix, self.weight)[:, self.missing :]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense(), None, self.stride, self.padding)  # B C' H/s W/s

    def fused(self) -> nn.Conv2d:
        """Return the convolution that computes the same."""
        side = self.kernel_size
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, side, self.stride, self.padding, bias=False
        )
        weight = kronecker_sum(self.mix.detach().double(), self.weight.detach().double())
        conv.weight = nn.Parameter(weight[:, self.missing :].to(self.weight.dtype).contiguous())
        return conv


class PHLinear(nn.Module):
    """A linear layer whose weight is a sum of n Kronecker products.

    Args:
        in_features: Width of the input, a multiple of n.
        out_features: Width of the output, a multiple of n.
        n: Number of products.
    """

    def __init__(self, in_features: int, out_features: int, *, n: int):
        super().__init__()
        _check_n(n, in_features, "in_features")
        _check_n(n, out_features, "out_features")
        self.mix = nn.Parameter(torch.empty(n, n, n))
        self.weight = nn.Parameter(torch.empty(out_features, in_features // n))
        bound = in_features**-0.5
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        _initialise(self.mix, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, kronecker_sum(self.mix, self.weight), self.bias)  # ... out_features

    def fused(self) -> nn.Linear:
        """Return the linear layer that computes the same."""
        weight = kronecker_sum(self.mix.detach().double(), self.weight.detach().double())
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight = nn.Parameter(weight.to(self.weight.dtype))
        layer.bias = nn.Parameter(self.bias.detach().clone())
        return layer


class PHConvNorm(Absorbing):
    """A `PHConv`, a batch norm and an optional activation, with the arguments of `ConvNorm`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        n: Number of Kronecker products.
        kernel_size: Odd; the padding keeps the size before the stride.
        stride: Stride of the convolution.
        act: Class of the activation; None leaves the block linear.
    """

    absorbs_after = {"conv": "norm"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        n: int,
        kernel_size: int = 1,
        stride: int = 1,
        act: Activation | None = None,
    ):
        super().__init__()
        self.conv = PHConv(in_channels, out_channels, n=n, kernel_size=kernel_size, stride=stride)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = activation(act, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # B C' H/stride W/stride


class PHNet(Backbone):
    """What both kinds of networks share: the first convolution is a `PHConv`."""

    def first_conv_name(self) -> str:
        """Return the dotted name of the convolution that reads the image."""
        kinds = (PHConv, nn.Conv2d)
        return next(name for name, module in self.named_modules() if isinstance(module, kinds))


class PHResNet(PHNet):
    """ResNet for small images: a 3x3 convolution, then four stages at strides 1 to 8.

    Args:
        n: Number of Kronecker products of each weight.
        depths: Number of units in each stage.
        dims: Channels inside the units of each stage; a bottleneck has four times as many outside.
        bottleneck: Whether units are bottlenecks.
    """

    def __init__(
        self,
        *,
        n: int,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        bottleneck: bool,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        conv = partial(PHConvNorm, n=n)
        stages, outs, before = [], [], dims[0]
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            out = 4 * dims[i] if bottleneck else dims[i]
            units = []
            for j, rate in enumerate(rates):
                unit = resnet_unit(
                    before,
                    out,
                    hidden=dims[i] if bottleneck else None,
                    stride=2 if i and not j else 1,
                    conv=conv,
                    drop_path=rate,
                )
                units.append(unit)
                before = out
            stages.append(Stage(units))
            outs.append(out)
        super().__init__(
            stem=conv(in_chans, dims[0], kernel_size=3, act=nn.ReLU),
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(before, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=outs,
            strides=(1, 2, 4, 8),
            in_chans=in_chans,
        )


class PHHead(HiddenHead):
    """A classifier with two hidden layers that are sums of Kronecker products (VGG).

    Args:
        num_features: Channels of the feature map.
        num_classes: Number of logits; 0 leaves the classifier out.
        hidden_size: Width of both hidden layers.
        n: Number of Kronecker products.
        pool: As for `ClassifierHead`.
        drop_rate: Probability of the dropout before each hidden layer; 0.5 in the paper.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden_size: int,
        n: int,
        pool: str,
        drop_rate: float,
    ):
        super().__init__(num_features, num_classes, hidden_size=hidden_size, pool=pool)
        make = partial(_hidden_layers, num_features, hidden_size, n, drop_rate)
        self.__dict__["make_hidden"] = make
        self.hidden = make() if self.pool else nn.Identity()


def _hidden_layers(in_features: int, hidden: int, n: int, drop_rate: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(drop_rate),
        PHLinear(in_features, hidden, n=n),
        nn.ReLU(),
        nn.Dropout(drop_rate),
        PHLinear(hidden, hidden, n=n),
        nn.ReLU(),
    )


class PHVGG(PHNet):
    """VGG with batch norms: five stages of 3x3 convolutions, each followed by a pooling.

    Args:
        n: Number of Kronecker products of each weight.
        depths: Number of convolutions in each stage.
        dims: Channels of each stage.
        hidden_size: Width of the hidden layers of the classifier.
    """

    def __init__(
        self,
        *,
        n: int,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        hidden_size: int,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        conv = partial(PHConvNorm, n=n, kernel_size=3, act=nn.ReLU)
        stages, before = [], dims[0]
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            # The first convolution of all is the stem.
            inputs = [before, *[dim] * (depth - 1)][not i :]
            layers = [conv(channels, dim) for channels in inputs]
            stages.append(Stage([*layers, HalvingPool(2, 2 ** len(dims))]))
            before = dim
        super().__init__(
            stem=conv(in_chans, dims[0]),
            stages=stages,
            norm=nn.Identity(),
            head=PHHead(
                before,
                num_classes,
                hidden_size=hidden_size,
                n=n,
                pool=global_pool,
                drop_rate=drop_rate,
            ),
            channels=dims,
            strides=[2 ** (i + 1) for i in range(len(dims))],
            in_chans=in_chans,
        )


RESNET_ROWS = (
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    (r"layer(\d)\.(\d+)\.conv(\d)\.", r"stages.{1-1}.blocks.\2.branch.{3-1}.conv."),
    (r"layer(\d)\.(\d+)\.bn(\d)\.", r"stages.{1-1}.blocks.\2.branch.{3-1}.norm."),
    (r"layer(\d)\.(\d+)\.shortcut\.0\.", r"stages.{1-1}.blocks.\2.shortcut.conv."),
    (r"layer(\d)\.(\d+)\.shortcut\.1\.", r"stages.{1-1}.blocks.\2.shortcut.norm."),
    (r"linear\.", "head.fc."),
)


def _vgg_rows(model: Any) -> list[Any]:
    """Return the rows; convolutions, norms, activations and pools are numbered in one sequence."""
    rows: list[Any] = [
        (r"features\.0\.", "stem.conv."),
        (r"features\.1\.", "stem.norm."),
        (r"classifier\.([14])\.", r"head.hidden.\1."),
        (r"classifier\.6\.", "head.fc."),
    ]
    number = 3
    for s, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            if isinstance(block, HalvingPool):
                number += 1
                continue
            rows += [
                (rf"features\.{number}\.", f"stages.{s}.blocks.{j}.conv."),
                (rf"features\.{number + 1}\.", f"stages.{s}.blocks.{j}.norm."),
            ]
            number += 3
    return rows


def _flatten_products(state: State, model: Any) -> State:
    """Give weights the shape out in/n ...; public ones are n out/n in/n ..."""
    own = model.state_dict()
    return {
        key: tensor.flatten(0, 1)
        if key in own and tensor.ndim == own[key].ndim + 1 and key.endswith(".weight")
        else tensor
        for key, tensor in state.items()
    }


_NAMES = ((r"\.A$", ".mix"), (r"\.[FS]$", ".weight"))
RESNET_STYLE = KeyStyle(
    "eleGAN23/HyperNets", "conv1.F", rows=RESNET_ROWS, inside=_NAMES, tensors=_flatten_products
)
VGG_STYLE = KeyStyle(
    "eleGAN23/HyperNets", "features.0.F", rows=_vgg_rows, inside=_NAMES, tensors=_flatten_products
)

_DIMS, _LARGE = (64, 128, 256, 512), (60, 120, 240, 516)
# fmt: off
RESNETS = {
    "phresnet18":        ((2, 4),    dict(depths=(2, 2, 2, 2),  dims=_DIMS,  bottleneck=False)),
    "phresnet18_large":  ((2, 3, 4), dict(depths=(2, 2, 2, 2),  dims=_LARGE, bottleneck=False)),
    "phresnet50":        ((2, 4),    dict(depths=(3, 4, 6, 3),  dims=_DIMS,  bottleneck=True)),
    "phresnet50_large":  ((2, 3, 4), dict(depths=(3, 4, 6, 3),  dims=_LARGE, bottleneck=True)),
    "phresnet152_large": ((2, 3, 4), dict(depths=(3, 8, 36, 3), dims=_LARGE, bottleneck=True)),
}
VGGS = {
    "phvgg16":       ((2, 4),    dict(depths=(2, 2, 3, 3, 3), dims=(64, 128, 256, 512, 512),
                                      hidden_size=512)),
    "phvgg19_large": ((2, 3, 4), dict(depths=(2, 2, 4, 4, 4), dims=(24, 72, 216, 648, 648),
                                      hidden_size=516)),
}
# fmt: on


def _with_n(family: dict[str, tuple[tuple[int, ...], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {f"{name}_n{n}": dict(n=n, **sizes) for name, (ns, sizes) in family.items() for n in ns}


PHResNet.register_family(_with_n(RESNETS), (RESNET_STYLE,))
PHVGG.register_family(_with_n(VGGS), (VGG_STYLE,))
