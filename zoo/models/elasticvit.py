"""ElasticViT: inverted residuals, then attention, all cut out of one supernet.

Paper: Tang et al., "ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision
       Transformer on Diverse Mobile Devices" (arXiv 2303.09730), section 3 and table 1.
Code:  github.com/microsoft/Moonlit @ 348a402c00bf, folder ElasticViT (MIT).
Here:  each variant is an ordinary network. Loading the published supernet cuts its weights out of
       the leading channels, and reorders the rows of queries, keys and values. Batch norm
       statistics of the supernet belong to another variant: call `zoo.recalibrate`. Images are not
       resized inside the network, and need not be square. The table of the attention bias is made
       for images of 256 pixels: smaller ones use the middle of it; for larger ones it is stretched.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.folding import Absorbing, scale_queries
from zoo.blocks.heads import HiddenHead
from zoo.blocks.inverted_residual import InvertedResidual, init_weights
from zoo.blocks.offset_bias import OffsetBias
from zoo.blocks.residual import PooledShortcut
from zoo.blocks.sizes import grid_size
from zoo.blocks.squeeze import SqueezeExcite
from zoo.blocks.widths import Group, Slice, hidden_channels, positions, rows
from zoo.keys import KeyStyle, State

HEAD_DIM = 16  # channels of a head's queries and keys
HEAD_RATIO, HIDDEN = 6, 1984
STRIDES = (2, 4, 8, 16, 16, 32, 64)
SIDES = (16, 16, 8, 4)  # sides of the last four feature maps of an image of 256 pixels


def _by_head(x: Tensor, num_heads: int) -> Tensor:
    """Rearrange B C H W to B heads N D, contiguous."""
    heads = x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3)
    return heads.clone(memory_format=torch.contiguous_format)


class Attention(nn.Module):
    """Attention with a bias by offset; values are convolved, outputs activated (section 3.1).

    Outputs of `qkv` are all queries, then all keys, then all values, each ordered by head.

    Args:
        channels: Channels of input and output, a multiple of 16.
        bias: Returns the bias for the height and width of a feature map.
        value_ratio: Width of a head's values divided by that of its keys.
    """

    input_layers, output_parts = ("qkv",), ("proj",)

    def __init__(self, channels: int, bias: nn.Module, *, value_ratio: int):
        super().__init__()
        self.num_heads, self.scale = channels // HEAD_DIM, HEAD_DIM**-0.5
        self.keys, self.values = channels, value_ratio * channels
        self.qkv = nn.Conv2d(channels, 2 * self.keys + self.values, 1, bias=False)
        self.local = nn.Conv2d(
            self.values, self.values, 3, padding=1, groups=self.values, bias=False
        )
        self.bias = bias
        self.act = nn.Hardswish()
        self.proj = nn.Conv2d(self.values, channels, 1)

    # B batch, H heads, N positions, D features of a head
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        q, k, v = self.qkv(x).split([self.keys, self.keys, self.values], dim=1)
        q_BHND, k_BHND = _by_head(q, self.num_heads), _by_head(k, self.num_heads)
        v_BHND = _by_head(self.local(v), self.num_heads)
        bias_HNN = self.bias(height, width).to(q_BHND.dtype)
        y_BHND = F.scaled_dot_product_attention(
            q_BHND, k_BHND, v_BHND, attn_mask=bias_HNN[None], scale=self.scale
        )
        y = y_BHND.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))  # B C H W
        return self.proj(self.act(y))

    def fused(self) -> "Attention":
        """Fold the scale of the products into the queries."""
        return scale_queries(self, "qkv", self.keys)

    def prunable(self) -> list[Group]:
        """Declare the heads."""
        heads, value_dim = self.num_heads, self.values // self.num_heads
        values = (positions(1, heads, value_dim),)
        qkv = (
            positions(2, heads, HEAD_DIM),
            positions(1, heads, value_dim, start=2 * self.keys),
        )
        slices = [
            *rows(self.qkv, "qkv", qkv),
            *rows(self.local, "local", values),
            Slice("bias.table", 1, (positions(1, heads),)),
            Slice("proj.weight", 1, values, reads=True),
        ]
        return [Group("heads", heads, tuple(slices))]

    def resize(self, name: str, width: int) -> None:
        """Note the number of heads."""
        self.values = self.values // self.num_heads * width
        self.num_heads, self.keys = width, width * HEAD_DIM


class FeedForward(nn.Module):
    """Two 1x1 convolutions with hard swish between them.

    Args:
        channels: Channels of input and output.
        hidden: Channels between the convolutions.
    """

    input_layers, output_parts = ("fc1",), ("fc2",)

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.Hardswish()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # B C H W

    def prunable(self) -> list[Group]:
        """Declare the hidden channels."""
        return [hidden_channels(self, made=("fc1",), read=("fc2",))]


class ElasticBlock(Absorbing):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    The norms compute one mean and one variance of a whole feature map, over its channels and its
    positions, as the public code does.

    Args:
        channels: Channels of input and output.
        attention: Maps B C H W to B C H W.
        hidden: Channels inside the perceptron.
        drop_path: Probability of dropping a branch in training.
    """

    absorbs_before = {"attention": "norm1", "mlp": "norm2"}
    droppable = True

    def __init__(self, channels: int, attention: nn.Module, *, hidden: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(1, channels)
        self.attention = attention
        self.norm2 = nn.GroupNorm(1, channels)
        self.mlp = FeedForward(channels, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # B C H W


class ElasticViT(Backbone):
    """Three stages of inverted residuals at strides 2 to 8, then four with attention, 16 to 64.

    Args:
        dims: Channels of the seven stages; of the last four, multiples of 16.
        depths: Number of blocks in each stage; in the last four, after an inverted residual.
        expansions: Expansion of stages 1 and 2; stage 0 does not expand.
        kernels: Kernel sizes of the depthwise convolutions in the first three stages.
        mlp_ratios: Expansion of the perceptrons in the last four stages.
        value_ratios: Width of values divided by that of keys in the last four stages.
        img_size: Usual image size in pixels; when fused, the bias of this size is a constant.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        expansions: tuple[int, int] = (3, 3),
        kernels: tuple[int, int, int] = (3, 3, 3),
        mlp_ratios: tuple[int, ...],
        value_ratios: tuple[int, ...] = (2, 2, 2, 2),
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 256,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stages, before = [], dims[0]
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            out = dims[i]
            if i < 3:
                blocks: list[nn.Module] = [
                    _inverted(
                        out if j else before,
                        out,
                        stride=1 if j or not i else 2,
                        expansion=(1, *expansions)[i],
                        kernel_size=kernels[i],
                        gated=i == 2,
                        drop_path=rate,
                    )
                    for j, rate in enumerate(rates)
                ]
                stages.append(Stage(blocks))
            else:
                halves = STRIDES[i] != STRIDES[i - 1]
                reduction = _inverted(
                    before,
                    out,
                    stride=2 if halves else 1,
                    expansion=6,
                    kernel_size=3,
                    gated=True,
                    drop_path=rates[0],
                )
                blocks = [reduction]
                for rate in rates:
                    bias = OffsetBias(
                        out // HEAD_DIM, SIDES[i - 3], grid_size(img_size, STRIDES[i])
                    )
                    attention = Attention(out, bias, value_ratio=value_ratios[i - 3])
                    hidden = mlp_ratios[i - 3] * out
                    blocks.append(ElasticBlock(out, attention, hidden=hidden, drop_path=rate))
                stages.append(Stage(blocks))
            before = out
        last, act = HEAD_RATIO * before, nn.Hardswish
        super().__init__(
            stem=ConvNorm(in_chans, dims[0], kernel_size=3, stride=2, act=act),
            stages=stages,
            norm=ConvNorm(before, last, bias=True, act=act),
            head=HiddenHead(
                last, num_classes, hidden_size=HIDDEN, pool=global_pool, drop_rate=drop_rate
            ),
            channels=dims,
            strides=STRIDES,
            in_chans=in_chans,
        )
        self.apply(_init)


def _inverted(
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    expansion: int,
    kernel_size: int,
    gated: bool,
    drop_path: float,
) -> InvertedResidual:
    hidden = expansion * in_channels
    return InvertedResidual(
        in_channels,
        out_channels,
        stride=stride,
        expansion=expansion,
        kernel_size=kernel_size,
        act=nn.Hardswish,
        gate=SqueezeExcite(hidden, hidden // 4, gate=nn.Hardsigmoid) if gated else None,
        drop_path=drop_path,
        shortcut=PooledShortcut(in_channels, out_channels, stride=stride),
    )


def _init(module: nn.Module) -> None:
    init_weights(module)
    if isinstance(module, Attention | FeedForward):
        for layer in module.children():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                nn.init.trunc_normal_(layer.weight, std=0.02)


INVERTED = (
    (r"pw_conv\.", "expand.conv."),
    (r"pw_bn\.", "expand.norm."),
    (r"dw_conv\.", "depthwise.conv."),
    (r"dw_bn\.", "depthwise.norm."),
    (r"se_conv1\.", "gate.reduce."),
    (r"se_conv2\.", "gate.expand."),
    (r"pwl_conv\.", "project.conv."),
    (r"pwl_bn\.", "project.norm."),
    (r"shortcut_conv\.", "shortcut.conv."),
)
ATTENTION = (
    (r"attention_bias$", "attention.bias.table"),
    (r"relative_position_index$", None),
    (r"dw_v_conv\.", "attention.local."),
    (r"norm1\.", "norm1."),
    ("", "attention."),
)
FEED_FORWARD = ((r"norm1\.", "norm2."), ("", "mlp."))


def _rows() -> list[Any]:
    """Return the rows; even layers of a late stage attend, odd ones are perceptrons."""
    early = r"feature_exactor\.(?P<s>[01])\.layers\.(?P<j>\d+)\.0\."
    late = r"feature_exactor\.(?P<s>[2-5])\.layers\."
    rows: list[Any] = [
        (r"first_conv\.", "stem.conv."),
        (r"first_conv_bn\.", "stem.norm."),
        (r"pre_head_0\.", "norm.conv."),
        (r"pre_head_norm_0\.", "norm.norm."),
        (r"pre_head_1\.", "head.hidden.0."),
        (r"classifer\.", "head.fc."),
    ]
    for part, new in INVERTED:
        rows += [
            (rf"conv_stem\.layers\.(\d+)\.0\.{part}", rf"stages.0.blocks.\1.{new}"),
            (early + part, rf"stages.{{s+1}}.blocks.\g<j>.{new}"),
            (rf"{late}0\.reduction\.{part}", f"stages.{{s+1}}.blocks.0.{new}"),
        ]
    for digits, parts in (("[02468]", ATTENTION), ("[13579]", FEED_FORWARD)):
        for part, new in parts:
            target = None if new is None else f"stages.{{s+1}}.blocks.{{j//2+1}}.{new}"
            rows.append((rf"{late}(?P<j>\d*{digits})\.{part}", target))
    return rows


def _cut_out(state: State, model: Any) -> State:
    """Cut a variant out of the supernet: leading channels, middles of kernels, no extra layers."""
    own, cut = model.state_dict(), {}
    depths = [len(stage.blocks) for stage in model.stages]
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "stages" and int(parts[1]) < len(depths):
            spare = parts[2] == "blocks" and int(parts[3]) >= depths[int(parts[1])]
            if spare or (key.endswith("shortcut.conv.weight") and key not in own):
                continue
        if key in own and tensor.ndim and not key.startswith("head.fc."):
            shape = own[key].shape
            if key.endswith("attention.qkv.weight"):
                tensor = _queries_keys_values(tensor, shape[1], shape[0])
            tensor = tensor[: shape[0]]
            if tensor.ndim > 1 and key != "stem.conv.weight":
                tensor = tensor[:, : shape[1]]
            if tensor.ndim == 4:
                rest = (tensor.shape[2] - shape[2]) // 2
                tensor = tensor[:, :, rest : rest + shape[2], rest : rest + shape[3]]
        cut[key] = tensor
    return cut


def _queries_keys_values(weight: Tensor, channels: int, rows: int) -> Tensor:
    """Cut out the rows of queries, keys and values, and sort them by kind, then by head.

    The supernet of width M has M rows for queries, M for keys and 4 M for values. The public code
    cuts out the first of each kind, but reads its result head by head.

    Args:
        weight: 6 M x M; a weight of another shape is returned unchanged.
        channels: Channels of the variant.
        rows: Rows of the result.
    """
    most, values = weight.shape[1], rows - 2 * channels
    if weight.shape[0] != 6 * most:
        return weight
    starts = ((0, channels), (most, channels), (2 * most, values))
    taken = torch.cat([weight[first : first + count] for first, count in starts])
    by_head = taken.unflatten(0, (channels // HEAD_DIM, -1))
    kinds = by_head.split([HEAD_DIM, HEAD_DIM, values // (channels // HEAD_DIM)], dim=1)
    return torch.cat([kind.flatten(0, 1) for kind in kinds])


KEY_STYLES = (
    KeyStyle("microsoft/Moonlit", "first_conv_bn.weight", rows=_rows(), tensors=_cut_out),
)

# fmt: off
VARIANTS = {
    "elasticvit_t1":   dict(img_size=128, dims=(16, 24, 32, 64,  96, 176, 272),
                            depths=(1, 2, 3, 1, 1, 1, 1), mlp_ratios=(2, 2, 3, 4)),
    "elasticvit_t2":   dict(img_size=160, dims=(16, 24, 40, 48,  96, 176, 256),
                            depths=(1, 2, 3, 1, 1, 2, 2), mlp_ratios=(3, 4, 3, 2)),
    "elasticvit_s1":   dict(img_size=192, dims=(16, 24, 40, 64,  96, 192, 272),
                            depths=(1, 3, 3, 2, 2, 2, 2), mlp_ratios=(2, 2, 3, 4)),
    "elasticvit_s2":   dict(img_size=224, dims=(16, 24, 48, 64,  96, 192, 256),
                            depths=(1, 3, 3, 2, 2, 2, 2), mlp_ratios=(2, 2, 2, 4)),
    "elasticvit_m":    dict(img_size=224, dims=(16, 32, 48, 64,  96, 192, 288),
                            depths=(1, 3, 5, 2, 2, 2, 2), mlp_ratios=(2, 4, 4, 5),
                            kernels=(5, 3, 3)),
    "elasticvit_l1":   dict(img_size=256, dims=(16, 24, 40, 64,  96, 192, 320),
                            depths=(1, 3, 3, 2, 2, 2, 2), mlp_ratios=(4, 3, 4, 4),
                            expansions=(3, 6), kernels=(5, 5, 5)),
    "elasticvit_l1_5": dict(img_size=256, dims=(16, 24, 48, 64,  96, 256, 320),
                            depths=(2, 4, 4, 2, 2, 2, 2), mlp_ratios=(4, 5, 3, 5),
                            expansions=(3, 4), kernels=(3, 3, 5)),
    "elasticvit_l2":   dict(img_size=256, dims=(16, 24, 40, 80, 128, 256, 304),
                            depths=(1, 3, 4, 2, 2, 2, 2), mlp_ratios=(3, 2, 3, 5),
                            expansions=(6, 6), value_ratios=(2, 2, 2, 3)),
    "elasticvit_l3":   dict(img_size=256, dims=(16, 32, 48, 80, 128, 256, 320),
                            depths=(1, 3, 4, 2, 2, 2, 2), mlp_ratios=(4, 4, 3, 5),
                            expansions=(5, 5), kernels=(5, 3, 5)),
}
# fmt: on

ElasticViT.register_family(VARIANTS, KEY_STYLES)
