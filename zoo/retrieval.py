"""Image retrieval on any backbone: `create_model("mixvpr", encoder=...)`.

MixVPR turns the feature map of a backbone into one unit vector, the embedding of the image. Images
of one place have embeddings with a large inner product. Written from the text of Ali-bey et al.,
"MixVPR: Feature Mixing for Visual Place Recognition" (arXiv 2303.02190), section 3; there is no
licence for the authors' code.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import encoders
from zoo.blocks.sizes import pair, whole_number
from zoo.errors import BadInput, first_line
from zoo.inputs import published_input

STRIDE = 16  # pixels: the paper takes the third of four stages of a ResNet
CHANNELS, ROWS, DEPTH = 128, 4, 4  # embeddings of 512 numbers
RATIO = 1.0
SIDE = 224  # pixels, for backbones without a published image size
KNOWN = ("channels", "rows", "depth", "mlp_ratio", "stride")


class FeatureMixer(nn.Module):
    """A perceptron over the positions of each channel: x + W2 relu(W1 norm(x)), equation 2.

    Args:
        positions: Number of positions H W of the feature map.
        hidden: Width of the perceptron.
    """

    def __init__(self, positions: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(positions)
        self.expand = nn.Linear(positions, hidden)
        self.proj = nn.Linear(hidden, positions)
        for layer in (self.expand, self.proj):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(F.relu(self.expand(self.norm(x))))  # B C H*W


class MixVPR(nn.Module):
    """An encoder, feature mixers, and projections to an embedding of length 1.

    Args:
        encoder: A feature pyramid of timm with one level.
        img_size: Height and width in pixels. The mixers have weights for each position, so that
            other sizes are refused.
        in_chans: Channels of the image.
        channels: Channels after the first projection.
        rows: Positions after the second; the embedding has `channels * rows` numbers.
        depth: Number of mixers.
        mlp_ratio: Width of the mixers' perceptrons over the number of positions.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        img_size: tuple[int, int],
        in_chans: int,
        channels: int = CHANNELS,
        rows: int = ROWS,
        depth: int = DEPTH,
        mlp_ratio: float = RATIO,
    ):
        super().__init__()
        self.img_size, self.in_chans = img_size, in_chans
        self.num_features = channels * rows
        self.encoder = encoder
        width, *sides = _map_shape(encoder, in_chans, img_size)
        positions = sides[0] * sides[1]
        hidden = max(1, round(positions * mlp_ratio))
        self.mixers = nn.Sequential(*(FeatureMixer(positions, hidden) for _ in range(depth)))
        self.channel_proj = nn.Linear(width, channels)
        self.row_proj = nn.Linear(positions, rows)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images B in_chans H W to the feature map of the encoder, B C H' W'."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self.encoder(x)[0]
        if x.ndim != 4 or tuple(x.shape[2:]) != self.img_size:
            built = " x ".join(map(str, self.img_size))
            given = " x ".join(map(str, x.shape[2:]))
            raise BadInput(
                f"images of {given} pixels do not fit this model, which was built for {built}; set"
                " img_size (on the command line model.img_size)"
            )
        return self.encoder(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map images B in_chans H W to embeddings of length 1, B num_features."""
        y = self.mixers(self.forward_features(x).flatten(2))
        y = self.channel_proj(y.transpose(1, 2)).transpose(1, 2)
        return F.normalize(self.row_proj(y).flatten(1), dim=1)  # equation 5

    def classifier_names(self) -> tuple[str, ...]:
        """Return no names: an embedding has no classes."""
        return ()

    def no_weight_decay(self) -> set[str]:
        """Return the names of tables and scales that are exempt from weight decay."""
        return encoders.no_decay_names(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of the encoder's blocks during training."""
        self.encoder.set_grad_checkpointing(enable)


def _map_shape(encoder: Any, in_chans: int, img_size: Sequence[int]) -> tuple[int, int, int]:
    """Return C H W of the encoder's feature map."""
    like = next(encoder.parameters())
    training = encoder.training
    image = torch.zeros(1, in_chans, *img_size, device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad():
            channels, height, width = encoder.eval()(image)[0].shape[1:]
    finally:
        encoder.train(training)
    return channels, height, width


def create(
    name: str,
    *,
    encoder: str | None,
    pretrained: bool,
    in_chans: int | None = None,
    img_size: int | Sequence[int] | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    widths: Mapping[str, int] | None = None,
    **kwargs: Any,
) -> MixVPR:
    """Build the retrieval model `name` on top of a backbone.

    Args:
        name: One of `zoo.registry.RETRIEVERS`.
        encoder: A classification backbone: a name of `zoo.list_models()`, or `"timm/<name>"`.
        pretrained: Load the published weights of the backbone.
        in_chans: Channels of the image; None for 3.
        img_size: Image size in pixels, one number or (height, width); None for that of the
            backbone's published weights.
        checkpoint_path: Weights of the whole model or of its encoder, to load at the end.
        widths: Widths of a pruned model, as for `zoo.create_model`.
        **kwargs: `channels`, `rows`, `depth` and `mlp_ratio` as for `MixVPR`, and `stride`, the
            stride of the feature map in pixels (by default the coarsest up to 16).

    Raises:
        BadInput: An argument is wrong or missing, or the backbone has no such feature map.
        UnknownModel: The backbone does not exist.
    """
    encoder = encoders.required(name, encoder, kwargs)
    if unknown := sorted(kwargs.keys() - set(KNOWN)):
        key = unknown[0]
        raise BadInput(f"{key}={kwargs[key]!r} has no effect on {name}; leave it out")
    sizes = {
        key: whole_number(kwargs.get(key, default), key, 1)
        for key, default in (("channels", CHANNELS), ("rows", ROWS), ("depth", DEPTH))
    }
    ratio = kwargs.get("mlp_ratio", RATIO)
    is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if not is_number or not 0 < ratio <= 64:
        raise BadInput(f"mlp_ratio={ratio!r} must be a number above 0, such as 1")
    channels = 3 if in_chans is None else in_chans
    level = _level(encoder, kwargs.get("stride"))
    pyramid = encoders.build(encoder, [level], pretrained=pretrained, in_chans=channels)
    sides = _sides(encoder, img_size)
    try:
        model = MixVPR(pyramid, img_size=sides, in_chans=channels, mlp_ratio=ratio, **sizes)
    except BadInput:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        size = " x ".join(map(str, sides))
        raise BadInput(
            f"{name} with encoder={encoder} cannot be built for images of {size} pixels:"
            f" {first_line(error)}"
        ) from error
    encoders.finish(
        model,
        pyramid,
        encoder,
        checkpoint_path,
        new_classes=False,
        new_channels=in_chans is not None,
        widths=widths,
    )
    return model


def _level(encoder: str, stride: int | None) -> int:
    """Return the level of the encoder's pyramid to use.

    Raises:
        BadInput: None has this stride.
    """
    strides = encoders.strides_of(encoder)
    if stride is None:
        return max((i for i, s in enumerate(strides) if s <= STRIDE), default=0)
    if stride not in strides:
        known = ", ".join(map(str, dict.fromkeys(strides)))
        raise BadInput(f"stride={stride!r}: encoder={encoder} has feature strides {known}")
    return max(i for i, s in enumerate(strides) if s == stride)


def _sides(encoder: str, img_size: int | Sequence[int] | None) -> tuple[int, int]:
    """Return height and width in pixels."""
    if img_size is None:
        published: Any = published_input(encoder)["size"]
        return tuple(published[1:]) if published else (SIDE, SIDE)
    return pair(img_size)
