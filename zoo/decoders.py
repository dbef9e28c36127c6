"""Decoders for segmentation on any backbone: `create_model("unet", encoder=...)`.

Most decoders come from segmentation_models_pytorch (extra `dense`) and keep its names and parameter
names. It finds our backbones through `zoo.timm_bridge`. Those of `zoo.light_decoders` are our own.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import encoders, light_decoders, registry
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, first_line

# Decoders that need larger last feature maps: the encoder dilates instead of downsampling.
DILATED = ("deeplabv3", "deeplabv3plus", "pan")
# Side of the last feature map that a decoder needs at least: PAN halves it three times.
SMALLEST_MAPS = {"pan": 8}
# Strides of feature pyramids that decoders support: each level has half the size of the previous.
LADDERS = ([2, 4, 8, 16, 32], [4, 8, 16, 32])


class EncoderDecoder(nn.Module):
    """An encoder that returns a feature pyramid, a decoder that merges it, and a head.

    Args:
        net: A network of segmentation_models_pytorch.
        num_classes: Logits per pixel.
        in_chans: Channels of the image.
        name: Name of the decoder.
    """

    def __init__(self, net: Any, *, num_classes: int, in_chans: int, name: str = ""):
        super().__init__()
        self.encoder = net.encoder
        self.decoder = net.decoder
        self.segmentation_head = net.segmentation_head
        self.num_classes, self.in_chans = num_classes, in_chans
        self.size_multiple = int(net.encoder.output_stride)
        self.any_size = not net.requires_divisible_input_shape
        self.smallest_side = SMALLEST_MAPS.get(name, 1) * self.size_multiple

    @property
    def pyramid(self) -> Any:
        """The encoder, as timm built it."""
        return self.encoder.model

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images B in_chans H W to the feature map of the decoder.

        Raises:
            BadInput: The decoder does not support the image size.
        """
        if not self.any_size:
            check_sides(x, self.size_multiple, self.smallest_side)
        return self.decoder(self.encoder(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """Map the feature map of the decoder to logits B num_classes H W, at image size."""
        return self.segmentation_head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last layer, which computes the logits."""
        return self.segmentation_head[0]

    def classifier_names(self) -> tuple[str, ...]:
        """Return the dotted name of the layer that computes the logits."""
        return ("segmentation_head.0",)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one for `num_classes`."""
        old = self.segmentation_head[0]
        self.segmentation_head[0] = nn.Conv2d(
            old.in_channels,
            whole_number(num_classes, "num_classes", 1),
            old.kernel_size,
            padding=old.padding,
        ).to(old.weight)
        self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        """Return the names of tables and scales that are exempt from weight decay."""
        return encoders.no_decay_names(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of the encoder's blocks during training."""
        self.pyramid.set_grad_checkpointing(enable)


class LightEncoderDecoder(EncoderDecoder):
    """An encoder, one of `zoo.light_decoders`, and a 1x1 convolution to logits.

    Args:
        encoder: A feature pyramid of timm, which returns the levels that the decoder uses.
        decoder: The decoder.
        num_classes: Logits per pixel.
        in_chans: Channels of the image.
    """

    def __init__(self, encoder: nn.Module, decoder: Any, *, num_classes: int, in_chans: int):
        nn.Module.__init__(self)
        self.encoder, self.decoder = encoder, decoder
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder.out_channels, num_classes, 1))
        self.num_classes, self.in_chans = num_classes, in_chans

    @property
    def pyramid(self) -> Any:
        return self.encoder

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images B in_chans H W to the feature map of the decoder."""
        return self.decoder(self.encoder(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """Map the feature map of the decoder to logits B num_classes H W, at its own size."""
        return self.segmentation_head(x)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.forward_head(self.forward_features(x))
        return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


def create(
    name: str,
    *,
    encoder: str | None,
    pretrained: bool,
    num_classes: int | None = None,
    in_chans: int | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    widths: Mapping[str, int] | None = None,
    **kwargs: Any,
) -> EncoderDecoder:
    """Build the decoder `name` on top of a backbone.

    Args:
        name: One of `zoo.registry.DECODERS`.
        encoder: A classification backbone: a name of `zoo.list_models()`, or `"timm/<name>"`.
        pretrained: Load the published weights of the backbone.
        num_classes: Logits per pixel.
        in_chans: Channels of the image.
        checkpoint_path: Weights of the whole model or of its encoder, to load at the end.
        widths: Widths of a pruned model, as for `zoo.create_model`.
        **kwargs: Arguments of this decoder in segmentation_models_pytorch.

    Raises:
        BadInput: The package is missing, an argument is wrong or missing, or the decoder does not
            support the strides of the backbone.
        UnknownModel: The backbone does not exist.
    """
    is_light = name in light_decoders.DECODERS
    if not is_light and importlib.util.find_spec("segmentation_models_pytorch") is None:
        raise BadInput(
            f"{name} needs the package segmentation-models-pytorch; pip install 'zoo-vision[dense]'"
        )
    encoder = encoders.required(name, encoder, kwargs)
    new_classes, new_channels = num_classes is not None, in_chans is not None
    in_chans = 3 if in_chans is None else in_chans
    classes = 1 if num_classes is None else whole_number(num_classes, "num_classes", 1)
    build = _build_light if is_light else _build_smp
    model = build(name, encoder, pretrained, classes, in_chans, **kwargs)
    encoders.finish(
        model,
        model.pyramid,
        encoder,
        checkpoint_path,
        new_classes=new_classes,
        new_channels=new_channels,
        widths=widths,
    )
    return model


def _build_smp(
    name: str, encoder: str, pretrained: bool, classes: int, in_chans: int, **kwargs: Any
) -> EncoderDecoder:
    """Return a decoder of segmentation_models_pytorch on a backbone."""
    _check_strides(name, encoder)
    _check_dilation(name, encoder)
    import segmentation_models_pytorch as smp

    try:
        net: Any = smp.create_model(
            name,
            f"tu-{encoders.name_in_timm(encoder)}",
            encoder_weights="imagenet" if pretrained else None,
            in_channels=in_chans,
            classes=classes,
            **kwargs,
        )
    except BadInput:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise BadInput(
            f"{name} with encoder={encoder} cannot be built: {first_line(error)}"
        ) from error
    return EncoderDecoder(net, num_classes=classes, in_chans=in_chans, name=name)


def _build_light(
    name: str, encoder: str, pretrained: bool, classes: int, in_chans: int, **kwargs: Any
) -> LightEncoderDecoder:
    """Return one of our own decoders on a backbone."""
    if kwargs:
        key = next(iter(kwargs))
        raise BadInput(f"{key}={kwargs[key]!r} has no effect on {name}; leave it out")
    levels = light_decoders.levels_of(name, encoders.strides_of(encoder))
    pyramid = encoders.build(encoder, levels, pretrained=pretrained, in_chans=in_chans)
    decoder = light_decoders.DECODERS[name](pyramid.feature_info.channels())
    return LightEncoderDecoder(pyramid, decoder, num_classes=classes, in_chans=in_chans)


def _check_strides(name: str, encoder: str) -> None:
    """Raise `BadInput` unless decoders support the strides of the encoder's feature pyramid."""
    strides = encoders.strides_of(encoder)
    if strides not in LADDERS:
        raise BadInput(
            f"encoder={encoder} has feature strides {', '.join(map(str, strides))}; {name} needs"
            " 4, 8, 16, 32 (and optionally 2): choose a backbone such as mobilenetv2_100"
        )


def _check_dilation(name: str, encoder: str) -> None:
    """Raise `BadInput` if the decoder needs dilation and the encoder does not support it."""
    ours = not registry.is_timm(encoder)
    if (
        name in DILATED
        and ours
        and not registry.get_spec(encoder).capabilities.get("output_stride")
    ):
        can = ", ".join(registry.list_models(output_stride=True, smallest_of_family=True))
        raise BadInput(
            f"{name} needs an encoder with output_stride, which encoder={encoder} does not support;"
            f" choose one of {can}"
        )


def check_sides(x: Tensor, multiple: int, least: int = 1) -> None:
    """Raise `BadInput` for a height or width of images B C H W that a decoder does not support.

    Args:
        x: The images.
        multiple: Every side must be a multiple of it.
        least: The smallest side.
    """
    if least > multiple and (x.shape[2] < least or x.shape[3] < least):
        raise BadInput(
            f"images of {list(x.shape[2:])} pixels: every side must be at least {least} for this"
            " decoder"
        )
    if x.shape[2] % multiple != 0 or x.shape[3] % multiple != 0:
        raise BadInput(
            f"images of {list(x.shape[2:])} pixels: every side must be a multiple of {multiple}"
        )


torch.fx.wrap("check_sides")  # a leaf for symbolic tracing, because it reads shapes
