"""MAXIM: image restoration by perceptrons along two axes, at three scales.

Paper: Tu et al., "MAXIM: Multi-Axis MLP for Image Processing" (arXiv 2201.02973), fig. 2 to 4.
Code:  github.com/google-research/maxim @ 3c8265171ffc (JAX; Apache-2.0).
Here:  in evaluation mode `forward` returns the restored image at its full size; in training mode,
       all images of all stages, which the loss compares with the target.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.multiaxis import (
    ATTENTION_NAMES,
    GATING_NAMES,
    MLP_NAMES,
    ConvAttention,
    CrossGating,
    DenseAttention,
    MultiAxisMlp,
    spatial,
)
from zoo.blocks.sizes import check_sides
from zoo.errors import BadInput
from zoo.keys import KeyStyle, State, rename
from zoo.registry import register

torch.fx.wrap("check_sides")

LEVELS, SIZES, BOTTLENECK_SIZE = 3, (16, 16, 8), 8
MULTIPLE = 64


class Encoder(nn.Module):
    """Perceptrons and convolutions at one scale; optionally gated by an earlier stage.

    Args:
        in_channels: Channels of the input, with the skip if there is one.
        channels: Channels of the output.
        size: Side of a block, and of the grid.
        groups: Number of perceptrons, each with a `ConvAttention`.
        down: Also return the output at half of its size.
        gated: Gate the output by those of the stage before.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        *,
        groups: int,
        down: bool = True,
        gated: bool = False,
    ):
        super().__init__()
        self.conv = nn.Linear(in_channels, channels)
        self.mixers = nn.ModuleList(MultiAxisMlp(channels, size) for _ in range(groups))
        self.attentions = nn.ModuleList(ConvAttention(channels) for _ in range(groups))
        self.gate = CrossGating(channels, channels, channels, size, up=False) if gated else None
        self.down = nn.Conv2d(channels, channels, 4, 2, padding=1) if down else None

    def forward(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        y = x
        for mixer, attention in zip(self.mixers, self.attentions, strict=True):
            y = attention(mixer(y))
        x = x + y
        if self.gate is not None and earlier is not None:
            x = self.gate(x, earlier)[0]
        return x  # B H W C


class Decoder(nn.Module):
    """Double the size, join the skip, and apply an `Encoder`.

    Args:
        in_channels: Channels of the smaller feature map.
        channels: Channels of the output, and of the upsampled map.
        skip_channels: Channels of the skip.
        size: As for `Encoder`.
        groups: As for `Encoder`.
    """

    def __init__(
        self, in_channels: int, channels: int, skip_channels: int, size: int, *, groups: int
    ):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, channels, 2, 2)
        self.block = Encoder(channels + skip_channels, channels, size, groups=groups, down=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([spatial(self.up, x), skip], dim=-1))  # B 2H 2W C


class Bottleneck(nn.Module):
    """Perceptrons at the smallest scale.

    Args:
        channels: Channels of input and output.
        groups: Number of perceptrons, each with a `DenseAttention`.
    """

    def __init__(self, channels: int, *, groups: int):
        super().__init__()
        self.conv = nn.Linear(channels, channels)
        self.mixers = nn.ModuleList(MultiAxisMlp(channels, BOTTLENECK_SIZE) for _ in range(groups))
        self.attentions = nn.ModuleList(DenseAttention(channels) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x
        for mixer, attention in zip(self.mixers, self.attentions, strict=True):
            y = attention(mixer(y))
        return x + y  # B H W C


class Supervision(nn.Module):
    """An image of one scale, and features weighted by it for the next stage (fig. 2).

    Args:
        channels: Channels of the features.
        out_channels: Channels of the image.
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv3 = nn.Conv2d(out_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = spatial(self.conv2, x) + image
        weights = spatial(self.conv3, restored).sigmoid()
        return x + spatial(self.conv1, x) * weights, restored  # B H W C, B H W 3


def resized(x: Tensor, levels: int) -> Tensor:
    """Resize B H W C by 2 to the power of `levels`, bilinearly, with anti-aliasing."""
    if levels == 0:
        return x
    factor = 2.0**levels
    maps = x.permute(0, 3, 1, 2)
    size = [int(maps.shape[2] * factor), int(maps.shape[3] * factor)]
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=levels < 0)
    return maps.permute(0, 2, 3, 1)


class RestorationStage(nn.Module):
    """One of the stacked U-nets.

    Args:
        features: Channels at the full size; each smaller scale has twice as many.
        groups: As for `Encoder`.
        bottlenecks: Number of bottlenecks.
        channels: Channels of the image.
        first: Whether this is the first stage, which no other gates.
        last: Whether this is the last stage, which only returns images.
    """

    def __init__(
        self,
        features: int,
        *,
        groups: int,
        bottlenecks: int,
        channels: int,
        first: bool,
        last: bool,
    ):
        super().__init__()
        dims = [features * 2**i for i in range(LEVELS)]
        self.inputs = nn.ModuleList(nn.Conv2d(channels, dim, 3, padding=1) for dim in dims)
        self.fuses = nn.ModuleList(
            CrossGating(dim, dim, dim, size, up=False)
            for dim, size in zip(dims, SIZES, strict=True)
            if not first
        )
        self.encoders = nn.ModuleList(
            Encoder(
                (dims[i - 1] if i else dims[0]) + dims[i],
                dims[i],
                SIZES[i],
                groups=groups,
                gated=not first,
            )
            for i in range(LEVELS)
        )
        self.bottlenecks = nn.ModuleList(
            Bottleneck(dims[-1], groups=groups) for _ in range(bottlenecks)
        )
        order = range(LEVELS - 1, -1, -1)
        self.resizes1 = nn.ModuleList(nn.Linear(dims[j], dims[i]) for i in order for j in range(3))
        self.gates = nn.ModuleList(
            CrossGating(3 * dims[i], dims[min(i + 1, 2)], dims[i], SIZES[i], up=True)
            for i in range(LEVELS)
        )
        self.resizes2 = nn.ModuleList(nn.Linear(dims[k], dims[i]) for i in order for k in order)
        self.decoders = nn.ModuleList(
            Decoder(dims[min(i + 1, 2)], dims[i], 3 * dims[i], SIZES[i], groups=groups)
            for i in range(LEVELS)
        )
        kind: Any = partial(nn.Conv2d, kernel_size=3, padding=1) if last else Supervision
        self.outputs = nn.ModuleList(kind(dim, channels) for dim in dims)
        self.last = last

    def forward(self, images: list[Tensor], before: dict[str, list[Tensor]]) -> dict[str, Any]:
        """Return `images` of each scale, and what gates the next stage."""
        inputs = [spatial(conv, image) for conv, image in zip(self.inputs, images, strict=True)]
        if before:
            pairs = zip(self.fuses, inputs, before["supervised"], strict=True)
            inputs = [fuse(x, y)[0] for fuse, x, y in pairs]
        x, encoded = inputs[0], []
        for i, encoder in enumerate(self.encoders):
            earlier = before["encoded"][i] + before["decoded"][i] if before else None
            encoded.append(encoder(torch.cat([x, inputs[i]], dim=-1), earlier))
            x = spatial(encoder.down, encoded[-1])  # type: ignore[arg-type]
        for bottleneck in self.bottlenecks:
            x = bottleneck(x)
        gate, gated, number = x, {}, 0
        for i in (2, 1, 0):
            parts = []
            for j in range(LEVELS):
                parts.append(self.resizes1[number](resized(encoded[j], j - i)))
                number += 1
            gated[i], gate = self.gates[i](torch.cat(parts, dim=-1), gate)
        decoded, number = {}, 0
        for i in (2, 1, 0):
            parts = []
            for k in (2, 1, 0):
                parts.append(self.resizes2[number](resized(gated[k], k - i)))
                number += 1
            x = decoded[i] = self.decoders[i](x, torch.cat(parts, dim=-1))
        maps = [decoded[i] for i in range(LEVELS)]
        if self.last:
            pairs = zip(self.outputs, maps, images, strict=True)
            return {"images": [spatial(conv, y) + image for conv, y, image in pairs]}
        ends = [end(y, image) for end, y, image in zip(self.outputs, maps, images, strict=True)]
        return {
            "images": [image for _, image in ends],
            "supervised": [y for y, _ in ends],
            "encoded": encoded,
            "decoded": maps,
        }


class Maxim(nn.Module):
    """Stacked U-nets at three scales. Sides of images must be multiples of 64.

    Args:
        stages: Number of U-nets.
        features: Channels at the full size.
        groups: Perceptrons of each encoder, bottleneck and decoder.
        bottlenecks: Number of bottlenecks of each stage.
        in_chans: Channels of the image.
        num_classes: Channels of the restored image: those of the image.

    Raises:
        BadInput: `num_classes` differs from `in_chans`.
    """

    key_styles: Any = ()

    def __init__(
        self,
        *,
        stages: int,
        features: int = 32,
        groups: int = 2,
        bottlenecks: int = 2,
        in_chans: int = 3,
        num_classes: int | None = None,
    ):
        super().__init__()
        if num_classes not in (None, in_chans):
            raise BadInput(
                f"num_classes={num_classes} must be the channels of the image, in_chans={in_chans}"
            )
        self.in_chans = self.num_classes = in_chans
        self.multiple = MULTIPLE
        self.stages = nn.ModuleList(
            RestorationStage(
                features,
                groups=groups,
                bottlenecks=bottlenecks,
                channels=in_chans,
                first=s == 0,
                last=s == stages - 1,
            )
            for s in range(stages)
        )

    def restore(self, x: Tensor) -> list[list[Tensor]]:
        """Return the images of each stage from 1/4 to the full size, for images B C H W."""
        check_sides(x, 2, self.multiple)
        image = x.permute(0, 2, 3, 1)
        images = [image] + [image[:, s // 2 :: s, s // 2 :: s] for s in (2, 4)]
        before: dict[str, Any] = {}
        found = []
        for stage in self.stages:
            before = stage(images, before)
            found.append([y.permute(0, 3, 1, 2) for y in reversed(before["images"])])
        return found

    def forward(self, x: Tensor) -> Any:
        """Return the restored images, B C H W; in training mode, all images of all stages."""
        images = self.restore(x)
        if self.training:
            return [image for stage in images for image in stage]
        return images[-1][-1]


def _encoder(old: str, new: str, groups: int) -> list[tuple[str, str]]:
    rows = [(old + r"Conv_0\.", new + "conv."), (old + r"Conv_1\.", new + "down.")]
    for g in range(groups):
        mlp, attention = rf"SplitHeadMultiAxisGmlpLayer_{g}\.", rf"channel_attention_block_1{g}\."
        rows += [(old + mlp + a, f"{new}mixers.{g}.{b}") for a, b in MLP_NAMES]
        rows += _attention(old + attention, f"{new}attentions.{g}.")
    return rows + [(old + r"cross_gating_block\." + a, f"{new}gate.{b}") for a, b in GATING_NAMES]


def _attention(old: str, new: str) -> list[tuple[str, str]]:
    rows = [(old + a, new + b) for a, b in ATTENTION_NAMES]
    return rows + [(old + rf"conv{i}\.", f"{new}conv{i}.") for i in (1, 2)]


def _rows(model: Maxim) -> list[tuple[str, str]]:
    rows = []
    for s, stage in enumerate(model.stages):
        old, new = rf"stage_{s}_", f"stages.{s}."
        groups = len(stage.encoders[0].mixers)  # type: ignore[index,union-attr]
        for i in range(LEVELS):
            rows += _encoder(old + rf"encoder_block_{i}\.", f"{new}encoders.{i}.", groups)
            inside = rf"decoder_block_{i}\.UNetEncoderBlock_0\."
            rows += _encoder(old + inside, f"{new}decoders.{i}.block.", groups)
            rows += [
                (old + rf"input_conv_{i}\.", f"{new}inputs.{i}."),
                (old + rf"output_conv_{i}\.", f"{new}outputs.{i}."),
                (old + rf"decoder_block_{i}\.ConvTranspose_0\.", f"{new}decoders.{i}.up."),
            ]
            for public, own in (("cross_gating_block", "gates"), ("input_fuse_sam", "fuses")):
                rows += [
                    (old + rf"{public}_{i}\." + a, f"{new}{own}.{i}.{b}") for a, b in GATING_NAMES
                ]
            sam = rf"supervised_attention_module_{i}\.Conv_"
            rows += [(old + rf"{sam}{k}\.", f"{new}outputs.{i}.conv{k + 1}.") for k in range(3)]
        for n in range(len(stage.bottlenecks)):  # type: ignore[arg-type]
            place, own = old + rf"global_block_{n}\.", f"{new}bottlenecks.{n}."
            rows.append((place + r"input_proj\.", own + "conv."))
            for g in range(groups):
                mlp = rf"SplitHeadMultiAxisGmlpLayer_{g}\."
                rows += [(place + mlp + a, f"{own}mixers.{g}.{b}") for a, b in MLP_NAMES]
                attention = rf"channel_attention_block_1_{g}\."
                rows += _attention(place + attention, f"{own}attentions.{g}.")
        for number in range(18):
            part, index = divmod(number, 9)
            name = rf"UpSampleRatio_{18 * s + number}\.Conv_0\."
            rows.append((name, f"{new}resizes{part + 1}.{index}."))
    return rows


def _from_jax(state: State, model: Any) -> State:
    """Convert the parameters of the public npz files: names by "/", channels last."""
    state = {key.removeprefix("opt/target/").replace("/", "."): x for key, x in state.items()}
    own, converted = model.state_dict(), {}
    for key, x in rename(state, _rows(model)).items():
        base, _, leaf = key.rpartition(".")
        if leaf == "kernel" and x.ndim == 4:
            target = own.get(f"{base}.weight")
            x = x.permute(2, 3, 0, 1).flip(2, 3) if ".up" in f".{base}" else x.permute(3, 2, 0, 1)
            x = x.flatten(1) if target is not None and target.ndim == 2 else x
        elif leaf == "kernel":
            x = x.transpose(0, 1)
        converted[f"{base}.{'weight' if leaf in ('kernel', 'scale') else leaf}"] = x
    return converted


Maxim.key_styles = (
    KeyStyle("google-research/maxim", "stage_0_input_conv_0/kernel", convert=_from_jax),
    KeyStyle(
        "google-research/maxim (npz)", "opt/target/stage_0_input_conv_0/kernel", convert=_from_jax
    ),
)

for _name, _stages in (("maxim_s1", 1), ("maxim_s2", 2)):
    register(_name, partial(Maxim, stages=_stages))
