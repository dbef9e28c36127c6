"""VoVNet: one-shot aggregation, so that maps are joined once a module and not at every layer.

Paper: Lee et al., "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object
       Detection" (arXiv 1904.09730), table 1; the "ese" variants: CenterMask (arXiv 1911.06667).
Code:  github.com/stigma0617/VoVNet.pytorch @ 039d9dcbd07d (no licence; written from a description)
       and timm's vovnet.py (Apache-2.0); both key styles are read.
Here:  the two code bases differ in `vovnet39` and `vovnet57`: the authors' modules add their input
       but for the first of a stage, timm's `vovnet39a` and `vovnet57a` do not. Both are kept, by
       their own names: weights of one give other outputs in the other.
       timm drops whole modules for stochastic depth even where nothing is added to them, which
       leaves an image of zeros; here only modules with a shortcut are dropped.
"""

import re
from functools import partial

from torch import nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import linear_rates
from zoo.blocks.gates import NeighbourExcite, OneLayerExcite
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.one_shot import OneShotAggregation
from zoo.blocks.pools import HalvingPool, least_side
from zoo.blocks.separable import SeparableConvNorm
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register

GATES = {"": None, "ese": OneLayerExcite, "eca": NeighbourExcite}


class VoVNet(Backbone):
    """A convolutional stem (stage 0 and the beginning of stage 1), four stages of aggregations.

    Args:
        hidden: Channels inside the modules of each of the four stages.
        dims: Channels of each of the four stages.
        depths: Modules of each of the four stages.
        links: 3x3 convolutions of a module.
        stem: Channels of the three convolutions of the stem.
        residual: Modules after the first of a stage add their input.
        separable: 3x3 convolutions after the first of all are depthwise separable.
        gate: `"ese"` or `"eca"`: a channel gate in the last module of each stage; `""`: none.
        num_classes: Number of logits; 0 leaves the classifier out.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last module; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.

    Raises:
        BadInput: Stochastic depth where no module has a shortcut.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...],
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        links: int = 5,
        stem: tuple[int, int, int] = (64, 64, 128),
        residual: bool = True,
        separable: bool = False,
        gate: str = "",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        if drop_path_rate and not (residual and max(depths) > 1):
            raise BadInput(
                f"drop_path_rate={drop_path_rate}: no module of this variant has a shortcut; use 0"
            )
        kind = partial(SeparableConvNorm if separable else ConvNorm, kernel_size=3, act=nn.ReLU)
        least = least_side(4, halvings=3)
        stages = [Stage([kind(stem[0], stem[1])])]
        before = stem[2]
        for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
            down = HalvingPool(3, least) if i else kind(stem[1], stem[2], stride=2)
            blocks = []
            for j, rate in enumerate(rates):
                make_gate = GATES[gate] if j == len(rates) - 1 else None
                block = OneShotAggregation(
                    dims[i] if j else before,
                    dims[i],
                    hidden=hidden[i],
                    links=links,
                    residual=residual and j > 0,
                    separable=separable,
                    gate=make_gate(dims[i]) if make_gate is not None else None,
                    drop_path=rate,
                )
                blocks.append(block)
            stages.append(Stage(blocks, down))
            before = dims[i]
        super().__init__(
            stem=ConvNorm(in_chans, stem[0], kernel_size=3, stride=2, act=nn.ReLU),
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=(stem[1], *dims),
            strides=(2, 4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _from_timm(state: State, model: VoVNet) -> State:
    parts = [
        (r"conv_mid\.", "links."),
        (r"conv_concat\.", "join."),
        (r"conv_reduction\.", "reduce."),
        (r"attn\.", "gate."),
    ]
    rules = [(r"stem\.0\.", "stem."), (r"stem\.1\.", "stages.0.blocks.0.")]
    rules += [(r"stem\.2\.", "stages.1.downsample.")]
    rules += [
        (
            rf"stages\.(\d)\.blocks\.(\d+)\.{old}",
            lambda fit, new=new: f"stages.{int(fit[1]) + 1}.blocks.{fit[2]}.{new}",
        )
        for old, new in parts
    ]
    ends = [
        (r"\.conv_dw\.(\w+)$", r".conv.depthwise.\1"),
        (r"\.conv_pw\.(\w+)$", r".conv.pointwise.\1"),
        (r"\.bn\.(\w+)$", r".norm.\1"),
    ]
    state = rename(state, rules)
    for old, new in ends:
        state = {re.sub(old, new, key): tensor for key, tensor in state.items()}
    return state


def _from_original(state: State, model: VoVNet) -> State:
    rules = [
        (r"stem\.stem_1/", "stem."),
        (r"stem\.stem_2/", "stages.0.blocks.0."),
        (r"stem\.stem_3/", "stages.1.downsample."),
        (r"classifier\.", "head.fc."),
        (
            r"stage(\d)\.OSA\d_(\d+)\.layers\.(\d+)\.OSA\d_\d+_\d+/",
            lambda fit: f"stages.{int(fit[1]) - 1}.blocks.{int(fit[2]) - 1}.links.{fit[3]}.",
        ),
        (
            r"stage(\d)\.OSA\d_(\d+)\.concat\.OSA\d_\d+_concat/",
            lambda fit: f"stages.{int(fit[1]) - 1}.blocks.{int(fit[2]) - 1}.join.",
        ),
    ]
    return rename(state, rules)


VoVNet.key_styles = (
    KeyStyle("timm", "stem.0.conv.weight", _from_timm),
    KeyStyle("stigma0617/VoVNet.pytorch", "stem.stem_1/conv.weight", _from_original),
)

_SLIM, _FULL = (64, 80, 96, 112), (128, 160, 192, 224)
_NARROW, _WIDE = (112, 256, 384, 512), (256, 512, 768, 1024)
_DEPTH19, _DEPTH39, _DEPTH57 = (1, 1, 1, 1), (1, 1, 2, 2), (1, 1, 4, 3)
_DW = dict(links=3, stem=(64, 64, 64), separable=True, gate="ese")
# fmt: off
VARIANTS = {
    "vovnet27_slim": dict(hidden=_SLIM, dims=(128, 256, 384, 512), depths=_DEPTH19),
    "vovnet39":      dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH39),
    "vovnet57":      dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH57),
    "vovnet39a":     dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH39, residual=False),
    "vovnet57a":     dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH57, residual=False),
    "ese_vovnet19b_slim_dw": dict(hidden=_SLIM, dims=_NARROW, depths=_DEPTH19, **_DW),
    "ese_vovnet19b_dw":      dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH19, **_DW),
    "ese_vovnet19b_slim": dict(hidden=_SLIM, dims=_NARROW, depths=_DEPTH19, links=3, gate="ese"),
    "ese_vovnet39b": dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH39, gate="ese"),
    "ese_vovnet57b": dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH57, gate="ese"),
    "ese_vovnet99b": dict(hidden=_FULL, dims=_WIDE, depths=(1, 3, 9, 3), gate="ese"),
    "eca_vovnet39b": dict(hidden=_FULL, dims=_WIDE, depths=_DEPTH39, gate="eca"),
}
# fmt: on

for _name, _arguments in VARIANTS.items():
    register(_name, partial(VoVNet, **_arguments))
