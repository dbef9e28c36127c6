"""EfficientFormer: pooling blocks on maps, attention blocks at the end, at MobileNet speed.

Paper: Li et al., "EfficientFormer: Vision Transformers at MobileNet Speed" (arXiv 2206.01191),
       sizes of table 5 (appendix), blocks of fig. 2 and eq. 3 to 6.
Code:  github.com/snap-research/EfficientFormer @ d01da426243a (Snap Inc. grant in the style of MIT,
       parts Apache-2.0), and timm's efficientformer.py (Apache-2.0); both key styles are read.
Here:  the attention bias is looked up in every forward, never cached, and resampled for maps other
       than the 7x7 of a 224 px image, so that any size is taken; the public code takes 193..224.
"""

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.attention import BiasedAttention, OffsetBias, resample_table
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import affine_inputs, rebuilt, scale_outputs, split_affine
from zoo.blocks.heads import DistilledHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import ConvMlp, Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.scale import LayerScale
from zoo.blocks.sizes import grid_size
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register


class PoolBlock(nn.Module):
    """Average pooling minus identity as token mixer, then a convolutional MLP (eq. 3 and 4).

    Args:
        channels: Channels of input and output.
        hidden: Channels inside the MLP.
        drop_path: Probability of leaving a branch out while training.
        layer_scale: Initial layer scale.
    """

    def __init__(self, channels: int, hidden: int, *, drop_path: float, layer_scale: float):
        super().__init__()
        self.scale1 = LayerScale(channels, init=layer_scale, spatial=True)
        self.mlp = ConvMlp(channels, hidden)
        self.scale2: nn.Module = LayerScale(channels, init=layer_scale, spatial=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) - x
        x = x + self.drop_path(self.scale1(mixed))
        return x + self.drop_path(self.scale2(self.mlp(x)))

    def fused(self) -> "PoolBlock":
        """The second layer scale in the MLP; the first stays: pooling minus identity is no
        convolution at the border, where fewer pixels are averaged."""
        folded = isinstance(self.mlp.fc2.norm, nn.Identity)
        if not isinstance(self.scale2, LayerScale) or not folded:
            return self
        mlp = rebuilt(self.mlp, fc2=self.mlp.fc2.scaled(self.scale2.gamma))
        return rebuilt(self, mlp=mlp, scale2=nn.Identity())


class AttentionBlock(nn.Module):
    """Pre-norm attention and MLP over the positions of a map (eq. 5 and 6).

    Args:
        channels: Channels of input and output.
        hidden: Width inside the MLP.
        grid: Size of the map that the bias table is made for.
        drop_path: Probability of leaving a branch out while training.
        layer_scale: Initial layer scale.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        grid: tuple[int, int],
        drop_path: float,
        layer_scale: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = BiasedAttention(channels, grid)
        self.scale1: nn.Module = LayerScale(channels, init=layer_scale)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, hidden)
        self.scale2: nn.Module = LayerScale(channels, init=layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)  # B N C, a view
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), height, width)))
        x = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return x.transpose(1, 2).reshape(batch, channels, height, width)

    def fused(self) -> "AttentionBlock":
        """The norms' affine parts in the layers after them, the layer scales in those before."""
        if not isinstance(self.scale1, LayerScale) or not isinstance(self.scale2, LayerScale):
            return self
        norm1, *affine1 = split_affine(self.norm1)
        norm2, *affine2 = split_affine(self.norm2)
        attention, mlp = self.attention, self.mlp
        return rebuilt(
            self,
            norm1=norm1,
            attention=rebuilt(
                attention,
                qkv=affine_inputs(attention.qkv, *affine1),
                proj=scale_outputs(attention.proj, self.scale1.gamma),
            ),
            scale1=nn.Identity(),
            norm2=norm2,
            mlp=rebuilt(
                mlp,
                fc1=affine_inputs(mlp.fc1, *affine2),
                fc2=scale_outputs(mlp.fc2, self.scale2.gamma),
            ),
            scale2=nn.Identity(),
        )


class EfficientFormer(Backbone):
    """Four stages of pooling blocks; the last blocks of stage 4 attend (fig. 2).

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_attention: How many of the last stage's blocks attend.
        num_classes: Number of logits; 0 leaves the classifiers out.
        in_chans: Channels of the image.
        img_size: Size in pixels that the bias tables are made for; others are resampled.
        drop_rate: Dropout before the classifiers.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"avg"`, `"max"` or `""`.
        layer_scale: Initial layer scale.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        num_attention: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        layer_scale: float = 1e-5,
    ):
        grid = grid_size(img_size, 32)
        stages = []
        for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
            first_token = depths[i] - num_attention if i == len(depths) - 1 else depths[i]
            blocks = [
                PoolBlock(dims[i], 4 * dims[i], drop_path=rate, layer_scale=layer_scale)
                if j < first_token
                else AttentionBlock(
                    dims[i], 4 * dims[i], grid=grid, drop_path=rate, layer_scale=layer_scale
                )
                for j, rate in enumerate(rates)
            ]
            down = ConvNorm(dims[i - 1], dims[i], kernel_size=3, stride=2, bias=True) if i else None
            stages.append(Stage(blocks, down))
        half = partial(ConvNorm, kernel_size=3, stride=2, bias=True, act=nn.ReLU)
        super().__init__(
            stem=nn.Sequential(half(in_chans, dims[0] // 2), half(dims[0] // 2, dims[0])),
            stages=stages,
            norm=LayerNorm2d(dims[-1]),
            head=DistilledHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, ConvMlp):
        for layer in (module.fc1.conv, module.fc2.conv):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _convert(state: State, model: EfficientFormer, *, block: str, scale: str) -> State:
    """Rename what both public styles share; they differ in the names of blocks and scales.

    Both count the flattening of the map, before the first attention block, as a block of its own.

    Args:
        state: The tensors, their stem, downsamples and heads already renamed.
        model: The model to be filled.
        block: Public name of a block, of its stage `s` and index `j`.
        scale: Public name of layer scale `k` inside a block.
    """
    rules = []
    for s, stage in enumerate(model.stages):
        flattened = 0
        for j, ours in enumerate(stage.get_submodule("blocks").children()):
            attends = isinstance(ours, AttentionBlock)
            flattened = flattened or int(attends)
            old = re.escape(block.format(s=s, j=j + flattened))
            new = f"stages.{s}.blocks.{j}"
            rules += [(rf"{old}\.{scale.format(k=k)}$", f"{new}.scale{k}.gamma") for k in (1, 2)]
            if attends:
                rules += [
                    (rf"{old}\.token_mixer\.attention_biases$", f"{new}.attention.bias.table"),
                    (rf"{old}\.token_mixer\.", f"{new}.attention."),
                ]
            else:
                rules += [(rf"{old}\.mlp\.fc(\d)\.", rf"{new}.mlp.fc\1.conv.")]
                rules += [(rf"{old}\.mlp\.norm(\d)\.", rf"{new}.mlp.fc\1.norm.")]
            rules += [(rf"{old}\.", f"{new}.")]
    state = rename(state, rules)
    state = {key: value for key, value in state.items() if not key.endswith("attention_bias_idxs")}
    return _resampled(state, model)


def _resampled(state: State, model: EfficientFormer) -> State:
    """Fit tables learnt at another image size to those of `model`; also for our own keys."""
    for name, module in model.named_modules():
        if isinstance(module, OffsetBias) and f"{name}.table" in state:
            state[f"{name}.table"] = resample_table(state[f"{name}.table"], module.grid)
    return state


def _from_timm(state: State, model: EfficientFormer) -> State:
    rules = [
        (r"stem\.(conv|norm)(\d)\.", lambda fit: f"stem.{int(fit[2]) - 1}.{fit[1]}."),
        (r"head_dist\.", "head.fc_dist."),
        (r"head\.", "head.fc."),
    ]
    state = rename(state, rules)
    return _convert(state, model, block="stages.{s}.blocks.{j}", scale=r"ls{k}\.gamma")


def _from_original(state: State, model: EfficientFormer) -> State:
    rules = [
        (r"patch_embed\.0\.", "stem.0.conv."),
        (r"patch_embed\.1\.", "stem.0.norm."),
        (r"patch_embed\.3\.", "stem.1.conv."),
        (r"patch_embed\.4\.", "stem.1.norm."),
        (
            r"network\.([135])\.proj\.",
            lambda fit: f"stages.{int(fit[1]) // 2 + 1}.downsample.conv.",
        ),
        (
            r"network\.([135])\.norm\.",
            lambda fit: f"stages.{int(fit[1]) // 2 + 1}.downsample.norm.",
        ),
        (r"network\.([0246])\.(\d+)", lambda fit: f"stages.{int(fit[1]) // 2}.blocks.{fit[2]}"),
        (r"dist_head\.", "head.fc_dist."),
        (r"head\.", "head.fc."),
    ]
    state = rename(state, rules)
    return _convert(state, model, block="stages.{s}.blocks.{j}", scale="layer_scale_{k}")


EfficientFormer.key_styles = (
    KeyStyle("snap-research/EfficientFormer", "patch_embed.0.weight", _from_original),
    KeyStyle("timm", "stem.conv1.weight", _from_timm),
    KeyStyle("zoo", "stem.0.conv.weight", _resampled),
)

# fmt: off
VARIANTS = {
    "efficientformer_l1": dict(depths=(3, 2,  6, 4), dims=(48,  96, 224, 448), num_attention=1),
    "efficientformer_l3": dict(depths=(4, 4, 12, 6), dims=(64, 128, 320, 512), num_attention=4),
    "efficientformer_l7": dict(depths=(6, 6, 18, 8), dims=(96, 192, 384, 768), num_attention=8),
}
# fmt: on

for _name, _arguments in VARIANTS.items():
    register(_name, partial(EfficientFormer, **_arguments))
