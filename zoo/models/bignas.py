"""AttentiveNAS and AlphaNet: networks cut out of one supernet that was trained as in BigNAS.

Paper: Yu et al., "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models"
       (arXiv 2003.11142): the method. Its networks were never published.
       Wang et al., "AttentiveNAS" (arXiv 2011.09011), table 5, and "AlphaNet" (arXiv 2102.07954):
       the networks here.
Code:  github.com/facebookresearch/AttentiveNAS @ c4c16f174dd1 and
       github.com/facebookresearch/AlphaNet @ 1df57bf0e5c4 (both CC-BY-NC-4.0; nothing of them is
       here, and their weights may not be used commercially).
Here:  each variant is an ordinary network. Loading a published supernet cuts its weights out of the
       leading channels and the middles of kernels. Its batch norms have no statistics: call
       `zoo.recalibrate`. Images are not resized inside the network.
"""

from typing import Any

from timm.layers import make_divisible
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import HiddenHead
from zoo.blocks.inverted_residual import InvertedResidual, init_weights
from zoo.blocks.residual import PooledShortcut
from zoo.blocks.squeeze import SqueezeExcite
from zoo.keys import KeyStyle, State, numbered_blocks, prefixed

STRIDES = (1, 2, 2, 2, 1, 2, 1)
GATED = (False, False, True, False, True, True, True)
HEAD_RATIO = 6  # channels of the last convolution divided by those of the last stage


class AttentiveNet(Backbone):
    """Seven stages of inverted residuals, each of one width, kernel size and expansion.

    Every block has a shortcut: where it changes the size or the width, a pooled one.

    Args:
        dims: Channels of the stem, then of each stage.
        hidden_size: Width of the hidden layer of the head.
        kernels: Kernel size of the depthwise convolutions of each stage.
        expansions: Expansion of the blocks of each stage.
        depths: Number of blocks in each stage.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...],
        hidden_size: int,
        kernels: tuple[int, ...],
        expansions: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stem, *widths = dims
        stages, strides, before = [], [], stem
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = []
            for j, rate in enumerate(rates):
                hidden, stride = before * expansions[i], 1 if j else STRIDES[i]
                gate = None
                if GATED[i]:
                    inner = make_divisible(hidden // 4)
                    gate = SqueezeExcite(hidden, inner, gate=nn.Hardsigmoid)
                block = InvertedResidual(
                    before,
                    widths[i],
                    stride=stride,
                    expansion=expansions[i],
                    kernel_size=kernels[i],
                    act=nn.SiLU,
                    gate=gate,
                    drop_path=rate,
                    shortcut=PooledShortcut(before, widths[i], stride=stride),
                )
                blocks.append(block)
                before = widths[i]
            stages.append(Stage(blocks))
            strides.append(STRIDES[i] * (strides[-1] if strides else 2))
        last = HEAD_RATIO * before
        super().__init__(
            stem=ConvNorm(in_chans, stem, kernel_size=3, stride=2, act=nn.SiLU),
            stages=stages,
            norm=ConvNorm(before, last, act=nn.SiLU),
            head=HiddenHead(
                last,
                num_classes,
                hidden_size=hidden_size,
                bias=False,
                act=nn.SiLU,
                pool=global_pool,
                drop_rate=drop_rate,
            ),
            channels=widths,
            strides=strides,
            in_chans=in_chans,
        )
        self.apply(init_weights)


# The most blocks of each stage in the supernet, which numbers its blocks through all stages.
MOST_BLOCKS = (2, 5, 6, 6, 8, 8, 2)
PARTS = (
    (r"mobile_inverted_conv\.inverted_bottleneck\.", "expand."),
    (r"mobile_inverted_conv\.depth_conv\.se\.fc\.", "gate."),
    (r"mobile_inverted_conv\.depth_conv\.", "depthwise."),
    (r"mobile_inverted_conv\.point_linear\.", "project."),
    (r"shortcut\.conv\.conv\.", "shortcut.conv."),
    (r"shortcut\.conv\.", "shortcut.conv."),
)


def _rows(model: Any) -> list[Any]:
    """Return the rows for a network that was cut out."""
    rows: list[Any] = [
        (r"first_conv\.", "stem."),
        (r"last_conv\.0\.", "norm."),
        (r"last_conv\.2\.conv\.", "head.hidden.0."),
        (r"last_conv\.final_expand_layer\.", "norm."),
        (r"last_conv\.feature_mix_layer\.conv\.(?:conv\.)?", "head.hidden.0."),
        (r"classifier\.linear\.(?:linear\.)?", "head.fc."),
    ]
    for number, (s, j, block) in enumerate(numbered_blocks(model)):
        if isinstance(block.shortcut.conv, nn.Identity):
            rows.append((rf"blocks\.{number}\.shortcut\.", None))
        rows += prefixed(rf"blocks\.{number}\.", f"stages.{s}.blocks.{j}.", PARTS)
    return rows


def _supernet_rows(model: Any) -> list[Any]:
    """Return the rows for the supernet: blocks beyond the depth of a stage are left out."""
    rows = [row for row in _rows(model) if not row[0].startswith(r"blocks\.")]
    blocks = {(s, j): block for s, j, block in numbered_blocks(model)}
    number = 0
    for s, most in enumerate(MOST_BLOCKS):
        for j in range(most):
            old, block = rf"blocks\.{number}\.", blocks.get((s, j))
            number += 1
            if block is None:
                rows.append((old, None))
                continue
            if isinstance(block.shortcut.conv, nn.Identity):
                rows.append((old + r"shortcut\.", None))
            rows += prefixed(old, f"stages.{s}.blocks.{j}.", PARTS)
    return rows


def _cut_out(state: State, model: Any) -> State:
    """Cut leading channels and the middles of kernels out of the tensors of the supernet."""
    own = model.state_dict()
    return {
        key: _leading(key, tensor, own[key]) if key in own and tensor.ndim else tensor
        for key, tensor in state.items()
    }


def _leading(key: str, tensor: Tensor, own: Tensor) -> Tensor:
    if not key.startswith("head.fc."):  # classes are never cut
        tensor = tensor[: own.shape[0]]
    if own.ndim > 1 and key != "stem.conv.weight":  # neither are channels of images
        tensor = tensor[:, : own.shape[1]]
    if tensor.ndim == 4 and own.ndim == 4:
        rest = (tensor.shape[2] - own.shape[2]) // 2
        tensor = tensor[:, :, rest : rest + own.shape[2], rest : rest + own.shape[3]]
    return tensor


_NORMS = ((r"\.bn\.bn\.", ".norm."), (r"\.bn\.", ".norm."), (r"\.conv\.conv\.", ".conv."))
KEY_STYLES = (
    KeyStyle("facebookresearch/AttentiveNAS", "first_conv.conv.weight", rows=_rows, inside=_NORMS),
    KeyStyle(
        "facebookresearch/AttentiveNAS",
        "first_conv.conv.conv.weight",
        rows=_supernet_rows,
        inside=_NORMS,
        tensors=_cut_out,
    ),
)


def _variant(widths: str, kernels: str, expansions: str, depths: str) -> dict[str, Any]:
    """Return arguments from lists as the public configuration has them."""
    *dims, hidden_size = (int(width) for width in widths.split(","))
    lists = [tuple(map(int, digits)) for digits in (kernels, expansions, depths)]
    names = ("kernels", "expansions", "depths")
    return dict(dims=tuple(dims), hidden_size=hidden_size, **dict(zip(names, lists, strict=True)))


# Channels of the stem, of the stages and of the hidden layer; kernels, expansions, depths.
# fmt: off
VARIANTS = {
    "attentivenas_a0": _variant("16,16,24,32,64,112,192,216,1792", "3333333", "1444466", "1333331"),
    "attentivenas_a1": _variant("16,16,24,32,64,112,192,216,1984", "3335353", "1444466", "1333331"),
    "attentivenas_a2": _variant("16,16,24,32,64,112,200,224,1984", "3333353", "1454466", "1333341"),
    "attentivenas_a3": _variant("16,16,24,32,64,112,208,224,1984", "3335333", "1444466", "2334351"),
    "attentivenas_a4": _variant("16,16,24,32,64,112,192,216,1984", "3335353", "1445466", "1334351"),
    "attentivenas_a5": _variant("16,16,24,32,72,112,192,216,1792", "3335333", "1454466", "1333461"),
    "attentivenas_a6": _variant("16,16,24,32,64,112,216,224,1984", "3333353", "1465466", "1334461"),
    "alphanet_a5_small":
        _variant("16,16,24,32,64,112,208,216,1984", "3333353", "1445466", "1334451"),
    "alphanet_a5_base":
        _variant("16,16,24,32,64,112,200,216,1984", "3355333", "1444566", "2343351"),
}
# fmt: on

AttentiveNet.register_family(VARIANTS, KEY_STYLES)
