"""EcoFormer: PVT v2 and Twins whose attention compares binary codes.

Paper: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity" (arXiv 2209.09004),
       section 3, tables 1 and 2. Twins: Chu et al. (arXiv 2104.13840).
Code:  github.com/ziplab/EcoFormer @ a277f9e8c757 (Apache-2.0).
Here:  hash functions are fitted by `fit_hash(images)`, which `train.py` calls before the first
       step, never inside `forward`. Energy is saved on hardware whose additions are cheaper than
       its multiplications; elsewhere, only the complexity is linear.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.hashing import HashedAttention, fit_hashes
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_conv, init_linear
from zoo.blocks.mlp import Mlp
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.patches import PatchEmbed
from zoo.blocks.transformer import SelfAttention, TransformerBlock
from zoo.keys import KeyStyle, State, rename
from zoo.pyramid_backbone import HEADS, PUBLIC_ROWS, SIZES, STRIDES, PyramidBackbone

HASHED = 3  # stages with hashed attention; the last has softmax attention


class Hashed:
    """What both models have: hash functions that must be fitted before training."""

    def fit_hash(self, images: Tensor) -> None:
        """Fit the hash functions to the tokens of a batch of training images, B C H W.

        Args:
            images: Normalised images, at the size of the training.
        """
        model: Any = self
        fit_hashes(model, images)

    def has_hash(self) -> bool:
        """Return whether all hash functions are fitted or loaded."""
        model: Any = self
        found = [m for m in model.modules() if isinstance(m, HashedAttention)]
        return all(attention.is_fitted() for attention in found)


class EcoFormer(Hashed, PyramidBackbone):
    """PVT v2 without reduced feature maps: hashed attention in three stages, softmax in the last.

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
    """

    def mixer(self, channels: int, stage: int) -> nn.Module:
        """Return the attention of a block of a stage, on B H W C."""
        kind = HashedAttention if stage < HASHED else SelfAttention
        return kind(channels, HEADS[stage])


class Patches(nn.Module):
    """Patches that do not overlap, then a norm.

    Args:
        in_channels: Channels of the image or feature map.
        out_channels: Channels of the output.
        patch: Side of a patch.
        least: Smallest side of an image that the following layers support.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int, *, least: int = 1):
        super().__init__()
        self.patches = PatchEmbed(in_channels, out_channels, patch, least=least)
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.patches(x))  # B C' H/p W/p


class Positions(nn.Module):
    """Add a depthwise 3x3 convolution of the feature map (arXiv 2102.10882, fig. 2).

    Args:
        channels: Channels of the feature map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)  # B C H W


class PositionedBlock(nn.Module):
    """A block, then `Positions`.

    Args:
        block: Maps B C H W to B C H W.
        channels: Channels of the feature map.
    """

    def __init__(self, block: nn.Module, channels: int):
        super().__init__()
        self.block = block
        self.positions = Positions(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.positions(self.block(x))  # B C H W


class EcoTwins(Hashed, Backbone):
    """Twins-SVT with hashed attention among all tokens in three stages, softmax in the last.

    Args:
        depths: Number of blocks in each stage.
        dims: Channels of each stage.
        heads: Number of attention heads in each stage.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 2, 10, 4),
        dims: tuple[int, ...] = (64, 128, 256, 512),
        heads: tuple[int, ...] = (2, 4, 8, 16),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stages, stem = [], Patches(in_chans, dims[0], 4, least=STRIDES[-1])
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            kind = HashedAttention if i < HASHED else SelfAttention
            blocks: list[nn.Module] = [
                TransformerBlock(
                    dims[i],
                    kind(dims[i], heads[i]),
                    Mlp(dims[i], 4 * dims[i]),
                    drop_path=rate,
                    maps=True,
                )
                for rate in rates
            ]
            blocks[0] = PositionedBlock(blocks[0], dims[i])
            stages.append(Stage(blocks, Patches(dims[i - 1], dims[i], 2) if i else None))
        super().__init__(
            stem=stem,
            stages=stages,
            norm=LayerNorm2d(dims[-1], eps=1e-6),
            head=ClassifierHead(dims[-1], num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=dims,
            strides=STRIDES,
            in_chans=in_chans,
        )
        self.apply(init_linear)
        self.apply(init_conv)


BUFFERS = (
    (r"\.attn\.fast_attention\.ksh\.A$", ".mixer.hash"),
    (r"\.attn\.fast_attention\.ksh\.mvec$", ".mixer.means"),
    (r"\.attn\.fast_attention\.ksh\.anchor$", ".mixer.anchors"),
    (r"\.attn\.", ".mixer."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
)


def _tables(state: State, model: Any) -> State:
    """Bring the tables to our shapes, without the axis of the batch, and drop an unused one."""
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    return {
        key: tensor.reshape(shapes[key]) if key.endswith((".means", ".anchors")) else tensor
        for key, tensor in state.items()
        if not key.endswith("projection_matrix")
    }


def _twins_rows(model: Any) -> list[tuple[str, str]]:
    return [
        (r"patch_embeds\.0\.proj\.", "stem.patches.project."),
        (r"patch_embeds\.0\.", "stem."),
        (r"patch_embeds\.(\d)\.proj\.", r"stages.\1.downsample.patches.project."),
        (r"patch_embeds\.(\d)\.", r"stages.\1.downsample."),
        (r"pos_block\.(\d)\.proj\.0\.", r"stages.\1.blocks.0.positions.conv."),
        (r"blocks\.(\d)\.0\.", r"stages.\1.blocks.0.block."),
        (r"blocks\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"head\.", "head.fc."),
    ]


def _from_pvt_v2(state: State, model: Any) -> State:
    """Convert trained weights of PVT v2: queries become queries and keys; values stay (table 2).

    Keys, reduced feature maps and their norms are dropped. The hash functions stay as they are in
    the model, to be fitted.
    """
    if "stem.project.weight" not in state:
        state = rename(state, PUBLIC_ROWS)
    own, converted = model.state_dict(), {}
    for key, tensor in state.items():
        key = key.replace(".mixer.attention.", ".mixer.")
        last = key.startswith("stages.3.")
        if ".mixer.reduce." in key or ".mixer.norm." in key or (last and ".mixer.kv." in key):
            continue
        if ".mixer.q." in key and last:
            tensor = torch.cat([tensor, state[key.replace(".q.", ".kv.")]])
            key = key.replace(".q.", ".qkv.")
        elif ".mixer.kv." in key:
            tensor, key = tensor.chunk(2)[1], key.replace(".kv.", ".to_v.")
        converted[key.replace(".mixer.q.", ".mixer.to_qk.")] = tensor
    tables = (".anchors", ".means", ".hash")
    return converted | {key: value for key, value in own.items() if key.endswith(tables)}


PVT_STYLES = (
    KeyStyle(
        "ziplab/EcoFormer",
        "block1.0.attn.to_qk.weight",
        rows=(*(row for row in PUBLIC_ROWS if "attn" not in row[0] and "mlp" not in row[0]),),
        inside=BUFFERS,
        tensors=_tables,
    ),
    KeyStyle("whai362/PVT (v2)", "block1.0.attn.q.weight", convert=_from_pvt_v2),
    KeyStyle("zoo/pvt_v2", "stages.0.blocks.0.mixer.attention.q.weight", convert=_from_pvt_v2),
)
TWINS_STYLES = (
    KeyStyle(
        "ziplab/EcoFormer (Twins)",
        "blocks.0.0.attn.to_qk.weight",
        rows=_twins_rows,
        inside=BUFFERS,
        tensors=_tables,
    ),
)

EcoFormer.register_family(
    {f"ecoformer_pvtv2_{size}": arguments for size, arguments in SIZES.items()}, PVT_STYLES
)
EcoTwins.register_family({"ecoformer_twins_svt_s": {}}, TWINS_STYLES)
