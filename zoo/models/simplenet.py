"""SimpleNet: thirteen convolutions without shortcuts, then global maximum pooling.

Paper: Hasanpour et al., "Lets keep it simple, Using simple architectures to outperform deeper and
       more complex architectures" (arXiv 1608.06037).
Code:  github.com/Coderx7/SimpleNet_Pytorch @ 4334c57535bc (MIT).
Here:  layers of public checkpoints are matched by order, not by number, because the numbers depend
       on which layers had a dropout module when the file was saved (see `_match_by_order`).
       Dropout is only applied before the classifier; the authors' dropout inside the network, 0 in
       every published model, is left out.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.pools import HalvingPool, least_side
from zoo.errors import BadInput, unknown_value
from zoo.keys import KeyStyle, State

# Channels of each convolution, "P" for a pooling layer. Two of the thirteen convolutions are 1x1.
# fmt: off
CHAINS = {
    "5m": (64, 128, 128, 128, 128, 128, "P", 256, 256, 256, 512, "P", 2048, 256, 256),
    "9m": (128, 192, 192, 192, 192, 192, "P", 320, 320, 320, 640, "P", 2560, 320, 320),
    "cifar_310k": (64, 32, 32, 32, "P", 32, 32, 64, "P", 64, 64, "P", 128, 256, 64, "P", 64),
    "cifar_460k": (32, 32, 32, 64, "P", 64, 64, 64, "P", 64, 64, "P", 96, 96, 96, "P", 100),
    "cifar_5m":
        (64, 128, 128, 128, "P", 128, 128, 256, "P", 256, 256, "P", 512, 2048, 256, "P", 256),
    "cifar_5m_extra_pool":
        (64, 128, 128, 128, "P", 128, 128, 256, "P", 256, 256, "P", 512, "P", 2048, 256, "P", 256),
}
# fmt: on
POINTWISE = (10, 11)
# Which of the convolutions have stride 2; weights are published for 0 (CIFAR), 1 and 2.
STRIDE_MODES = {0: (), 1: (0, 1, 2), 2: (0, 1, 3), 3: (0, 1, 4), 4: (0, 2, 4)}


class MaxHead(ClassifierHead):
    """A classifier that pools by the maximum unless another pooling is chosen."""

    pools = ("max", "avg", "")


class SimpleNet(Backbone):
    """A chain of convolutions, one stage per size of the feature map.

    Args:
        chain: A name in `CHAINS`.
        width: Factor of the channels of all convolutions.
        stride_mode: Which of the first convolutions have stride 2, a key of `STRIDE_MODES`.

    Raises:
        BadInput: The stride mode is unknown.
    """

    def __init__(
        self,
        *,
        chain: str,
        width: float = 1.0,
        stride_mode: int = 0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "max",
    ):
        if stride_mode not in STRIDE_MODES:
            raise BadInput(unknown_value("stride_mode", stride_mode, STRIDE_MODES))
        layers = CHAINS[chain]
        twice = STRIDE_MODES[stride_mode]
        least = least_side(2 ** len(twice), layers.count("P"))
        groups = _by_size(layers, twice)
        stages, channels, before, position = [], [], in_chans, 0
        for group in groups:
            units = []
            for layer in group:
                if layer == "P":
                    continue
                out = round(int(layer) * width)
                units.append(
                    ConvNorm(
                        before,
                        out,
                        kernel_size=1 if position in POINTWISE else 3,
                        stride=2 if position in twice else 1,
                        bias=True,
                        act=nn.ReLU,
                    )
                )
                before, position = out, position + 1
            stages.append((units, HalvingPool(2, least) if group[0] == "P" else None))
            channels.append(before)
        stem = stages[0][0].pop(0)
        first = 2 if 0 in twice else 1
        super().__init__(
            stem=stem,
            stages=[Stage(units, pool) for units, pool in stages],
            norm=nn.Identity(),
            head=MaxHead(before, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=channels,
            strides=[first * 2**i for i in range(len(stages))],
            in_chans=in_chans,
        )
        self.apply(_init)


def _by_size(layers: Sequence[Any], twice: Sequence[int]) -> list[list[Any]]:
    """Cut a chain before each layer that shrinks the feature map."""
    groups: list[list[Any]] = [[]]
    position = 0
    for layer in layers:
        if groups[-1] and (layer == "P" or position in twice):
            groups.append([])
        groups[-1].append(layer)
        position += layer != "P"
    return groups


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight, gain=sqrt(2))
    elif isinstance(module, nn.BatchNorm2d):
        module.momentum = 0.05


def _match_by_order(state: State, model: SimpleNet) -> State:
    """Rename the n-th convolution and the n-th norm of the file to our n-th.

    Public numbers count every module of the chain: four per layer with dropout, three without.
    Files of 2018 have no dropout modules, later ones have most.
    """
    units = [name for name, module in model.named_modules() if isinstance(module, ConvNorm)]
    numbers = sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")})
    norms = [n for n in numbers if f"features.{n}.running_mean" in state]
    convs = [n for n in numbers if n not in norms]
    ours = {n: f"{unit}.conv" for n, unit in zip(convs, units, strict=False)}
    ours |= {n: f"{unit}.norm" for n, unit in zip(norms, units, strict=False)}

    def name(key: str) -> str:
        first, number, *rest = key.split(".")
        if first == "classifier":
            return f"head.fc.{number}"
        if first != "features" or int(number) not in ours:
            return key
        return ".".join((ours[int(number)], *rest))

    return {name(key): tensor for key, tensor in state.items()}


KEY_STYLES = (KeyStyle("Coderx7/SimpleNet_Pytorch", "features.0.weight", convert=_match_by_order),)

# fmt: off
VARIANTS = {
    "simplenetv1_small_m1_05":  dict(chain="5m", width=0.5,  stride_mode=1),
    "simplenetv1_small_m2_05":  dict(chain="5m", width=0.5,  stride_mode=2),
    "simplenetv1_small_m1_075": dict(chain="5m", width=0.75, stride_mode=1),
    "simplenetv1_small_m2_075": dict(chain="5m", width=0.75, stride_mode=2),
    "simplenetv1_5m_m1": dict(chain="5m", stride_mode=1),
    "simplenetv1_5m_m2": dict(chain="5m", stride_mode=2),
    "simplenetv1_9m_m1": dict(chain="9m", stride_mode=1),
    "simplenetv1_9m_m2": dict(chain="9m", stride_mode=2),
    "simplenet_cifar_310k": dict(chain="cifar_310k", num_classes=10),
    "simplenet_cifar_460k": dict(chain="cifar_460k", num_classes=10),
    "simplenet_cifar_5m":   dict(chain="cifar_5m",   num_classes=10),
    "simplenet_cifar_5m_extra_pool": dict(chain="cifar_5m_extra_pool", num_classes=10),
}
# fmt: on

SimpleNet.register_family(VARIANTS, KEY_STYLES)
