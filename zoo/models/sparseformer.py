"""SparseFormer: few latent tokens, each with a box, instead of a feature map.

Paper: Gao et al., "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv
       2304.03768), section 3, fig. 3 and 4, table 1; bootstrapped: Gao et al., "Bootstrapping
       SparseFormers from Vision Foundation Models" (arXiv 2312.01987).
Code:  github.com/showlab/sparseformer @ f4484c49ad87 (MIT), the library `sparseformer`.
Here:  as in the library, whose constants differ a little from those of the first code. The last
       feature map has one row that contains all tokens, B C 1 T; there is no pyramid.
"""

import math
from typing import Any

import torch
from timm.layers import DropPath, QuickGELU
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.focusing import BoxEncoding, BoxHead, Sampling, adjust_boxes
from zoo.blocks.folding import Absorbing
from zoo.blocks.heads import ClassifierHead, TokenHead
from zoo.blocks.init import init_linear
from zoo.blocks.mlp import Mlp
from zoo.blocks.tokens import ClassToken
from zoo.blocks.transformer import SelfAttention, TransformerBlock
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State

torch.fx.wrap("adjust_boxes")

REPEATS = 4  # of the first unit
NO_FEATURES = (
    "SparseFormer has tokens with boxes, not feature maps, so features_only=True is not supported;"
    " forward_features returns the tokens"
)


class Stem(nn.Module):
    """A convolution and max pooling, then each position is normalised over the channels.

    Args:
        in_channels: Channels of the image.
        channels: Channels of the feature map.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 7, 2, padding=3)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.conv(x)))
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5)  # B C H/4 W/4


class Block(Absorbing):
    """Attention and a perceptron, each called by itself.

    Args:
        channels: Width of the tokens.
        num_heads: Number of attention heads.
        eps: Epsilon of the norms.
        act: Class of the activation of the perceptron.
        drop_path: Probability of dropping a branch in training.
    """

    absorbs_before = {"mixer": "norm1", "mlp": "norm2"}

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        eps: float,
        act: type[nn.Module],
        drop_path: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.mixer = SelfAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, 4 * channels, act=act)
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """Mix the tokens, B T C."""
        return x + self.drop_path(self.mixer(self.norm1(x)))

    def transform(self, x: Tensor) -> Tensor:
        """Apply the perceptron to each token, B T C."""
        return x + self.drop_path(self.mlp(self.norm2(x)))


class FocusV1(nn.Module):
    """Attention, a new box, samples of the image, a perceptron (fig. 3).

    Args:
        channels: Width of the tokens.
        image_channels: Channels of the feature map.
        drop_path: Probability of dropping a branch in training.
    """

    def __init__(self, channels: int, image_channels: int, *, drop_path: float):
        super().__init__()
        self.block = Block(channels, 64, eps=1e-6, act=nn.GELU, drop_path=drop_path)
        self.boxes = BoxHead(channels, 4, eps=1e-6)
        self.sampling = Sampling(
            channels,
            image_channels,
            36,
            hidden=channels // 4,
            biased=True,
            border=False,
            drop_path=drop_path,
            eps=1e-6,
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.block.attend(x)
        boxes = adjust_boxes(boxes, self.drop_path(self.boxes(x)))
        x = self.sampling(x, boxes, image)
        return self.block.transform(x), boxes  # B T C, B T 4


class FocusV2(nn.Module):
    """Samples of the image, an encoding of the box, attention, a perceptron, a new box.

    Args:
        channels: Width of the tokens.
        image_channels: Channels of the feature map.
        whole: Whether attention, the perceptron and the new box are there.
    """

    def __init__(self, channels: int, image_channels: int, *, whole: bool):
        super().__init__()
        self.sampling = Sampling(
            channels, image_channels, 16, hidden=128, biased=False, border=True, drop_path=0.0
        )
        self.encoding = BoxEncoding(channels)
        self.whole = whole
        if whole:
            self.block = Block(channels, channels // 64, eps=1e-5, act=nn.GELU, drop_path=0.0)
            self.boxes = BoxHead(channels, 4, hidden=True)

    def forward(self, x: Tensor, boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoding(self.sampling(x, boxes, image), boxes)
        if self.whole:
            x = self.block.transform(self.block.attend(x))
            boxes = adjust_boxes(boxes, self.boxes(x))
        return x, boxes  # B T C, B T 4


class Focusing(nn.Module):
    """From a feature map to tokens: a unit four times, wider tokens, and one more unit.

    Args:
        image_channels: Channels of the feature map.
        tokens: Number of tokens.
        dims: Width of the tokens in the first unit, and after it.
        bootstrapped: Whether units are those of the second paper.
        drop_path: Probability of dropping a branch in training.
    """

    no_decay = ("start_tokens", "start_boxes", "steps")

    def __init__(
        self,
        image_channels: int,
        tokens: int,
        dims: tuple[int, int],
        *,
        bootstrapped: bool,
        drop_path: float,
    ):
        super().__init__()
        first, wide = dims
        self.tokens = tokens
        self.start_boxes = nn.Parameter(torch.zeros(tokens, 4))
        self.start_tokens = nn.Parameter(torch.zeros(1 if bootstrapped else tokens, first))
        self.repeats = REPEATS
        self.steps: Tensor
        self.first: nn.Module
        self.second: nn.Module
        self.norm: nn.Module = nn.Identity()
        self.last: nn.Module = nn.Identity()
        if bootstrapped:
            self.first = FocusV2(first, image_channels, whole=True)
            self.second = FocusV2(wide, image_channels, whole=False)
            self.last = ClassToken(wide)
            self.steps = nn.Parameter(torch.zeros(REPEATS, first))
        else:
            self.register_buffer("steps", torch.zeros(REPEATS, 1), persistent=False)
            self.first = FocusV1(first, image_channels, drop_path=drop_path)
            self.second = FocusV1(wide, image_channels, drop_path=drop_path)
            self.norm = nn.LayerNorm(wide, eps=1e-6)
        self.widen = nn.Linear(first, wide)
        self.bootstrapped = bootstrapped

    def forward(self, image: Tensor) -> Tensor:
        x = self.start_tokens.expand(image.shape[0], self.tokens, -1)
        boxes = self.start_boxes.repeat(image.shape[0], 1, 1)
        for i in range(self.repeats):
            x, boxes = self.first(x + self.steps[i], boxes, image)
        x, boxes = self.second(self.norm(self.widen(x)), boxes, image)
        return self.last(x)  # B T C, or with a class token B 1+T C

    def init(self) -> None:
        """Start with the whole image and, in a grid, with boxes of half its size."""
        nn.init.trunc_normal_(self.start_tokens, std=1.0)
        boxes = self.start_boxes.data
        boxes.copy_(boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand_as(boxes))
        side = math.isqrt(self.tokens)
        for i in range(side):
            for j in range(side):
                x, y = i / max(side - 1, 1) / 2, j / max(side - 1, 1) / 2
                boxes[i * side + j] = boxes.new_tensor([x, y, x + 0.5, y + 0.5])


class Row(nn.Module):
    """Turn tokens B T C into one row, B C 1 T."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unsqueeze(2)  # B C 1 T


class SparseFormer(Backbone):
    """A stem, units that look at the feature map through boxes, and a transformer.

    Args:
        tokens: Number of latent tokens.
        dims: Width of the tokens in the first unit, and after it.
        depth: Number of transformer blocks after the units that look at the image.
        bootstrapped: Use the units of the second paper, and a class token.
        quick: Activate by x sigmoid(1.702 x) in these blocks, as CLIP does.
        head_bias: Whether the classifier has a bias.
    """

    no_features = NO_FEATURES

    def __init__(
        self,
        *,
        tokens: int,
        dims: tuple[int, int],
        depth: int,
        bootstrapped: bool = False,
        quick: bool = False,
        head_bias: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str | None = None,
    ):
        image_channels, wide = (64 if bootstrapped else 96), dims[1]
        eps = 1e-5 if bootstrapped else 1e-6
        rates = drop_path_rates(drop_path_rate, [2 + depth])[0]
        focusing = Focusing(
            image_channels, tokens, dims, bootstrapped=bootstrapped, drop_path=rates[0]
        )
        blocks = [
            TransformerBlock(
                wide,
                SelfAttention(wide, wide // 64 if bootstrapped else 64),
                Mlp(wide, 4 * wide, act=QuickGELU if quick else nn.GELU),
                drop_path=rate,
                eps=eps,
            )
            for rate in rates[2:]
        ]
        kind: Any = TokenHead if bootstrapped else ClassifierHead
        pool = global_pool or ("token" if bootstrapped else "avg")
        super().__init__(
            stem=Stem(in_chans, image_channels),
            stages=[Stage(blocks, focusing)],
            norm=nn.Identity() if bootstrapped else Row(),
            head=kind(
                wide,
                num_classes,
                pool=pool if global_pool is None else global_pool,
                drop_rate=drop_rate,
                norm="layer",
                norm_eps=eps,
                bias=head_bias,
            ),
            channels=[wide],
            strides=[4],
            in_chans=in_chans,
            num_prefix_tokens=int(bootstrapped),
        )
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, Focusing | Sampling | BoxHead):
                module.init()

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, because there are no feature maps.

        Raises:
            BadInput: Always.
        """
        raise BadInput(NO_FEATURES)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Refuse, because there are no feature maps.

        Raises:
            BadInput: Always.
        """
        raise BadInput(NO_FEATURES)


def _rows(model: SparseFormer) -> list[tuple[str, str]]:
    whole: Any = model.stages[0].downsample
    rows = [
        (r"feat_extractor\.conv1\.", "stem.conv."),
        (r"initial_roi\.weight$", "stages.0.downsample.start_boxes"),
        (r"initial_embedding\.weight$", "stages.0.downsample.start_tokens"),
        (r"layers\.0\.stage_embedding\.weight$", "stages.0.downsample.steps"),
        (r"cls_embedding\.weight$", "stages.0.downsample.last.token"),
        (r"layers\.1\.0\.", "stages.0.downsample.widen."),
        (r"layers\.1\.1\.", "stages.0.downsample.norm."),
        (r"norm\.", "head.fc.norm."),
        (r"proj\.", "head.fc.linear."),
    ]
    if model.num_classes == 0:
        rows = rows[:-2]
    for number, name in ((0, "first"), (2, "second")):
        old, new = rf"layers\.{number}\.", f"stages.0.downsample.{name}."
        rows += [
            (old + r"roi_adjust_module\.0\.", new + "boxes.norm."),
            (old + r"roi_adjust_module\.3\.", new + "boxes.linear."),
            (
                old + r"roi_adjust_module\.1\.",
                new + ("boxes.hidden." if whole.bootstrapped else "boxes.linear."),
            ),
            (old + r"roi_offset_module\.0\.", new + "sampling.offsets.norm."),
            (old + r"roi_offset_module\.1\.", new + "sampling.offsets.linear."),
            (old + r"roi_offset_bias$", new + "sampling.start"),
            (old + r"adaptive_mixing\.parameter_generator\.0\.", new + "sampling.mixing.norm."),
            (old + r"adaptive_mixing\.parameter_generator\.1\.", new + "sampling.mixing.reduce."),
            (old + r"adaptive_mixing\.parameter_generator\.2\.", new + "sampling.mixing.expand."),
            (old + r"adaptive_mixing\.out_proj\.", new + "sampling.mixing.proj."),
            (old + r"adaptive_mixing\.m_beta$", new + "sampling.mixing.channel_bias"),
            (old + r"adaptive_mixing\.s_beta$", new + "sampling.mixing.point_bias"),
            (old + r"pe_transition\.0\.", new + "encoding.norm."),
            (old + r"pe_transition\.1\.", new + "encoding.linear."),
            (old + r"attn\.", new + "block.mixer."),
            (old, new + "block."),
        ]
    rows += [
        (r"layers\.(\d+)\.attn\.", "stages.0.blocks.{1-3}.mixer."),
        (r"layers\.(\d+)\.", "stages.0.blocks.{1-3}."),
    ]
    return rows


def _token(state: State, model: Any) -> State:
    """Give the class token the axis of the batch."""
    key = "stages.0.downsample.last.token"
    return state | ({key: state[key].reshape(1, 1, -1)} if key in state else {})


KEY_STYLES = (KeyStyle("showlab/sparseformer", "initial_roi.weight", rows=_rows, tensors=_token),)

# fmt: off
CLIP = dict(bootstrapped=True, quick=True, head_bias=False)
VARIANTS = {
    "sparseformer_v1_tiny":  dict(tokens=49, dims=(256, 512), depth=7),
    "sparseformer_v1_small": dict(tokens=64, dims=(320, 640), depth=7),
    "sparseformer_v1_base":  dict(tokens=81, dims=(384, 768), depth=9),
    "sparseformer_btsp_augreg_base":  dict(tokens=48, dims=(384, 768), depth=8, bootstrapped=True),
    "sparseformer_btsp_augreg_large":
        dict(tokens=48, dims=(512, 1024), depth=16, bootstrapped=True),
    "sparseformer_btsp_openai_clip_base":
        CLIP | dict(tokens=48, dims=(384, 768), depth=8, num_classes=512),
    "sparseformer_btsp_openai_clip_large":
        CLIP | dict(tokens=63, dims=(512, 1024), depth=16, num_classes=768),
}
# fmt: on

SparseFormer.register_family(VARIANTS, KEY_STYLES)
