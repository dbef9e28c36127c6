"""VoVNet: one-shot aggregation joins feature maps once per module, not at every layer.

Paper: Lee et al., "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object
       Detection" (arXiv 1904.09730), table 1; the "ese" variants: CenterMask (arXiv 1911.06667).
Code:  github.com/stigma0617/VoVNet.pytorch @ 039d9dcbd07d (no licence; written from a description)
       timm's vovnet.py (Apache-2.0) and github.com/youngwanLEE/vovnet-detectron2 (Apache-2.0);
       all three key styles are read.
Here:  the two code bases differ in `vovnet39` and `vovnet57`: the authors' modules add their input,
       except the first of a stage; timm's `vovnet39a` and `vovnet57a` do not. Both are kept under
       their own names, as their weights are not interchangeable.
       For stochastic depth timm drops whole modules even without a shortcut, which leaves zeros;
       here only modules with a shortcut are dropped.
"""

from functools import partial

import torch
from timm.layers import DropPath, EcaModule, EffectiveSEModule
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.pools import HalvingPool, least_side
from zoo.blocks.separable import SeparableConvNorm
from zoo.errors import BadInput
from zoo.keys import KeyStyle

GATES = {"": None, "ese": EffectiveSEModule, "eca": EcaModule}


class OneShotAggregation(nn.Module):
    """A chain of 3x3 convolutions; a 1x1 convolution joins input and all outputs (fig. 2b).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels of each link.
        links: Number of 3x3 convolutions.
        residual: Add the input, which must have `out_channels` channels.
        separable: The links are depthwise separable; a 1x1 convolution before them changes the
            width of the input to `hidden`.
        gate: Applied to the joined feature map.
        drop_path: Probability of dropping the branch in training, if `residual`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        links: int,
        residual: bool = False,
        separable: bool = False,
        gate: nn.Module | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        assert not residual or in_channels == out_channels
        narrow = separable and in_channels != hidden
        self.reduce = ConvNorm(in_channels, hidden, act=nn.ReLU) if narrow else nn.Identity()
        kind = SeparableConvNorm if separable else ConvNorm
        first = hidden if separable else in_channels
        self.links = nn.ModuleList(
            kind(hidden if i else first, hidden, kernel_size=3, act=nn.ReLU) for i in range(links)
        )
        self.join = ConvNorm(in_channels + links * hidden, out_channels, act=nn.ReLU)
        self.gate = gate if gate is not None else nn.Identity()
        self.residual = residual
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        y = self.reduce(x)  # B hidden H W, if separable
        for link in self.links:
            y = link(y)
            parts.append(y)
        y = self.gate(self.join(torch.cat(parts, dim=1)))  # B out_channels H W
        return x + self.drop_path(y) if self.residual else y


class VoVNet(Backbone):
    """A convolutional stem (stage 0 and the beginning of stage 1), four stages of aggregations.

    Args:
        hidden: Channels inside the modules of each of the four stages.
        dims: Channels of each of the four stages.
        depths: Number of modules in each of the four stages.
        links: Number of 3x3 convolutions in a module.
        stem: Channels of the three convolutions of the stem.
        residual: Modules after the first of a stage add their input.
        separable: All 3x3 convolutions but the first are depthwise separable.
        gate: `"ese"` or `"eca"`: a channel gate in the last module of each stage; `""`: no gate.

    Raises:
        BadInput: `drop_path_rate` is set, but no module has a shortcut.
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
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
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


TIMM = (
    (r"stem\.0\.", "stem."),
    (r"stem\.1\.", "stages.0.blocks.0."),
    (r"stem\.2\.", "stages.1.downsample."),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_mid\.", r"stages.{1+1}.blocks.\2.links."),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_concat\.", r"stages.{1+1}.blocks.\2.join."),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_reduction\.", r"stages.{1+1}.blocks.\2.reduce."),
    (r"stages\.(\d)\.blocks\.(\d+)\.attn\.", r"stages.{1+1}.blocks.\2.gate."),
)
TIMM_PARTS = (
    (r"\.conv_dw\.(\w+)$", r".conv.depthwise.\1"),
    (r"\.conv_pw\.(\w+)$", r".conv.pointwise.\1"),
    (r"\.bn\.(\w+)$", r".norm.\1"),
)
AUTHORS = (
    (r"stem\.stem_1/", "stem."),
    (r"stem\.stem_2/", "stages.0.blocks.0."),
    (r"stem\.stem_3/", "stages.1.downsample."),
    (r"classifier\.", "head.fc."),
    (
        r"stage(\d)\.OSA\d_(\d+)\.layers\.(\d+)\.OSA\d_\d+_\d+/",
        r"stages.{1-1}.blocks.{2-1}.links.\3.",
    ),
    (r"stage(\d)\.OSA\d_(\d+)\.concat\.OSA\d_\d+_concat/", "stages.{1-1}.blocks.{2-1}.join."),
)
_MODULE = r"stage(\d)\.OSA\d_(\d+)\."
DETECTRON2 = (
    *AUTHORS,
    (_MODULE + r"conv_reduction\.OSA\d_\d+_reduction_0/", "stages.{1-1}.blocks.{2-1}.reduce."),
    (_MODULE + r"ese\.fc\.", "stages.{1-1}.blocks.{2-1}.gate.fc."),
)
DETECTRON2_PARTS = (
    (r"\.dw_conv3x3\.(\w+)$", r".conv.depthwise.\1"),
    (r"\.pw_conv1x1\.(\w+)$", r".conv.pointwise.\1"),
    (r"\.pw_norm\.(\w+)$", r".norm.\1"),
)
KEY_STYLES = (
    KeyStyle("timm", "stem.0.conv.weight", rows=TIMM, inside=TIMM_PARTS),
    KeyStyle(
        "youngwanLEE/vovnet-detectron2",
        "stage2.OSA2_1.ese.fc.weight",
        rows=DETECTRON2,
        inside=DETECTRON2_PARTS,
    ),
    KeyStyle("stigma0617/VoVNet.pytorch", "stem.stem_1/conv.weight", rows=AUTHORS),
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

VoVNet.register_family(VARIANTS, KEY_STYLES)
