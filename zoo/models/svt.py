"""SVT: a scattering vision transformer; wavelet bands mix tokens first, attention afterwards.

Paper: Patro and Agneeswaran, "Scattering Vision Transformer: Spectral Mixing Matters"
       (arXiv 2311.01310), fig. 1 and 2, table 1.
Code:  github.com/badripatro/svt @ fcbc9b325f5d, svt.py (no licence file; nothing of it is here).
Here:  the wavelet transform is plain PyTorch and exports. Its low band's weights are resampled for
       maps other than 56x56, where the public code takes 224 px alone; so are the matrices of the
       ablation with token mixing. Training with labels for tokens is not offered: in training, too,
       the logits are those of evaluation.
"""

import re
from functools import partial

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import linear_rates
from zoo.blocks.folding import rebuilt, split_affine
from zoo.blocks.heads import TokenHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import FilteredMlp, Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.scattering import HalfScattering, Scattering
from zoo.blocks.sizes import grid_size
from zoo.blocks.tokens import to_row, to_tokens
from zoo.blocks.transformer import CrossAttention, SplitSelfAttention, TransformerBlock
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register

MLP_RATIOS = (8, 8, 4, 4)

torch.fx.wrap("to_row")


class Downsample(nn.Module):
    """A convolution to half the size, then a norm over channels.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x))


class StageNorm(nn.Module):
    """The norm that closes a stage; what it gives is the stage's level.

    Args:
        channels: Channels of the map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class ScatteringBlock(TransformerBlock):
    """A transformer block that scatters; its first norm's shift would be a map of its own."""

    absorbing = (("norm2", "mlp"),)


class ClassAttention(nn.Module):
    """The mean of all tokens asks the tokens once, then a norm: a map -> the row of tokens.

    Class attention (CaiT, arXiv 2103.17239, section 2.2) as VOLO has it; other tokens pass.

    Args:
        channels: Channels of the map.
        num_heads: Heads of the attention.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = CrossAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, 4 * channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """B C H W -> B C 1 1+N, the class token first."""
        x_BNC = to_tokens(x)
        token_B1C = x_BNC.mean(1, keepdim=True)
        seen = self.norm1(torch.cat([token_B1C, x_BNC], dim=1))
        token_B1C = token_B1C + self.attention(seen[:, :1], seen)
        token_B1C = token_B1C + self.mlp(self.norm2(token_B1C))
        return to_row(self.norm(torch.cat([token_B1C, x_BNC], dim=1)))

    def fused(self) -> "ClassAttention":
        """The affine parts of the norms in the layers after them."""
        if self.norm1.weight is None:
            return self
        norm1, *affine1 = split_affine(self.norm1)
        norm2, *affine2 = split_affine(self.norm2)
        attention = self.attention.after_affine(*affine1)
        mlp = self.mlp.after_affine(*affine2)
        return rebuilt(self, norm1=norm1, attention=attention, norm2=norm2, mlp=mlp)


class LabelledTokensHead(TokenHead):
    """A second classifier on every token; half of its largest logits is added (LV-ViT, VOLO).

    It is there where the class token is read.
    """

    def _make_classifiers(self) -> None:
        super()._make_classifiers()
        self.aux = self._classifier() if self.pool == "token" else nn.Identity()

    def classifiers(self) -> list[str]:
        return ["fc", "aux"] if self.pool == "token" else ["fc"]

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        y = self.pooled(x)
        if pre_logits:
            return y
        y = self.fc(y)
        if self.pool == "token" and self.num_classes > 0:
            y = y + 0.5 * self.aux(to_tokens(x)[:, 1:]).amax(1)
        return y


class SVT(Backbone):
    """Four stages at strides 4 to 32: the first one scatters, the others attend (fig. 1).

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        heads: Heads of each stage; the first number is without effect.
        stem: Channels inside the stem.
        columns: The ablation that mixes half of the channels, along rows of positions, too.
        token_label: Add half of the largest logits of all tokens (the published form).
        num_classes: Number of logits; 0 leaves the classifiers out.
        in_chans: Channels of the image.
        img_size: Size in pixels that the first stage's weights are made for; others are resampled.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        global_pool: `"token"`, `"avg"`, `"max"` or `""`.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        heads: tuple[int, ...],
        stem: int,
        columns: bool = False,
        token_label: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "token",
    ):
        grid, stages = grid_size(img_size, 4), []
        for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
            blocks: list[nn.Module] = []
            for rate in rates:
                mlp = FilteredMlp(dims[i], MLP_RATIOS[i] * dims[i])
                if i:
                    mixer: nn.Module = SplitSelfAttention(dims[i], heads[i])
                else:
                    mixer = HalfScattering(dims[0], grid) if columns else Scattering(dims[0], grid)
                kind = TransformerBlock if i else ScatteringBlock
                blocks.append(kind(dims[i], mixer, mlp, drop_path=rate, maps=True))
            closing = [StageNorm(dims[i])] if i < 3 else []
            down = Downsample(dims[i - 1], dims[i]) if i else None
            stages.append(Stage([*blocks, *closing], down))
        conv = partial(ConvNorm, out_channels=stem, act=nn.ReLU)
        head = LabelledTokensHead if token_label else TokenHead
        super().__init__(
            stem=nn.Sequential(
                conv(in_chans, kernel_size=7, stride=2),
                conv(stem, kernel_size=3),
                conv(stem, kernel_size=3),
                Downsample(stem, dims[0]),
            ),
            stages=stages,
            norm=ClassAttention(dims[-1], heads[-1]),
            head=head(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=(4, 8, 16, 32),
            in_chans=in_chans,
            num_prefix_tokens=1,
        )
        self.apply(_init)


def _init(module: nn.Module) -> None:
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _from_original(state: State, model: SVT) -> State:
    def place(fit: re.Match) -> str:
        number = int(fit[1]) - 1
        return f"stages.{number}.downsample." if number else "stem.3."

    def closing(fit: re.Match) -> str:
        blocks = {key.split(".")[1] for key in state if key.startswith(f"block{fit[1]}.")}
        return f"stages.{int(fit[1]) - 1}.blocks.{len(blocks)}.norm."

    def layers(fit: re.Match) -> str:
        part = "columns" if fit["t"] else "channels"
        kind = "bias" if fit["b"] else "weight"
        return f"stages.0.blocks.{fit['j']}.mixer.{inner}{part}.{kind}{fit['n']}"

    halves = any(".attn.conv." in key for key in state)
    inner = "scattering." if halves else ""
    fixed = re.compile(r".*\.(xfm|ifm)\.")  # wavelet filters, constants here
    state = {key: value for key, value in state.items() if not fixed.match(key)}
    return rename(
        state,
        [
            (r"patch_embed1\.conv\.([036])\.", lambda fit: f"stem.{int(fit[1]) // 3}.conv."),
            (r"patch_embed1\.conv\.([147])\.", lambda fit: f"stem.{int(fit[1]) // 3}.norm."),
            (r"patch_embed(\d)\.proj\.", lambda fit: f"{place(fit)}project."),
            (r"patch_embed(\d)\.norm\.", lambda fit: f"{place(fit)}norm."),
            (
                r"block1\.(?P<j>\d+)\.attn\.complex_weight_lh_(?P<b>b?)(?P<n>\d)(?P<t>(_t)?)$",
                layers,
            ),
            (r"block1\.(\d+)\.attn\.complex_weight_ll$", rf"stages.0.blocks.\1.mixer.{inner}low"),
            (r"block1\.(\d+)\.attn\.conv\.", r"stages.0.blocks.\1.mixer.filter."),
            (
                r"block(\d)\.(\d+)\.attn\.",
                lambda fit: f"stages.{int(fit[1]) - 1}.blocks.{fit[2]}.mixer.",
            ),
            (
                r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.",
                lambda fit: f"stages.{int(fit[1]) - 1}.blocks.{fit[2]}.mlp.filter.",
            ),
            (r"block(\d)\.(\d+)\.", lambda fit: f"stages.{int(fit[1]) - 1}.blocks.{fit[2]}."),
            (r"norm4\.", "norm.norm."),
            (r"norm([123])\.", closing),
            (r"post_network\.0\.attn\.", "norm.attention."),
            (r"post_network\.0\.", "norm."),
            (r"aux_head\.", "head.aux."),
            (r"head\.", "head.fc."),
        ],
    )


SVT.key_styles = (KeyStyle("badripatro/svt", "patch_embed1.conv.0.weight", _from_original),)

# fmt: off
_SMALL = dict(depths=(3, 4, 6, 3), dims=(64, 128, 320, 448), heads=(2, 4, 10, 14), stem=32)
VARIANTS = {
    "svt_s":    _SMALL,
    "svt_s_ct": _SMALL | dict(columns=True, token_label=False),
    "svt_b": dict(depths=(3, 4, 12, 3), dims=(64, 128, 320, 512), heads=(2, 4, 10, 16), stem=64),
    "svt_l": dict(depths=(3, 6, 18, 3), dims=(96, 192, 384, 512), heads=(3, 6, 12, 16), stem=64),
}
# fmt: on

for _name, _arguments in VARIANTS.items():
    register(_name, partial(SVT, **_arguments))
