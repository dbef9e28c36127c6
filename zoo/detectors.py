"""Detectors on any backbone: `create_model("ssdlite", encoder=...)`.

Heads, losses and box codes are torchvision's. They read the feature pyramid of the backbone from
`min_stride` on, and two coarser levels made from its last one. Non-maximum suppression is no part
of a model (`zoo.deploy.detections`).
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import ops
from torchvision.models import detection
from torchvision.models.detection.ssdlite import SSDLiteHead

from zoo import encoders
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, first_line

MIN_STRIDE = 4  # pixels, of the finest level
WIDTH = 128  # channels of the pyramid of RetinaNet and FCOS
GROUPS = 32  # of their group norms
EXTRA_LEVELS = 2
BASE = 3  # side of the smallest anchor / stride of its level
CROWD, ROW = 5, 6  # column of the crowd flag; columns of a target


class Anchors(nn.Module):
    """Boxes of fixed shapes around each position of each level.

    Args:
        strides: Stride of each level in pixels.
        shapes: For each level, (width, height) of each of its boxes in pixels.
    """

    def __init__(self, strides: Sequence[int], shapes: Sequence[Sequence[tuple[float, float]]]):
        super().__init__()
        self.strides = list(strides)
        for level, boxes in enumerate(shapes):
            self.register_buffer(f"shapes_{level}", torch.tensor(boxes), persistent=False)

    @property
    def per_position(self) -> int:
        """Number of boxes around each position."""
        return len(getattr(self, "shapes_0"))  # noqa: B009 -- a buffer, typed by getattr

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return x1 y1 x2 y2 in pixels, A 4, for feature maps B C H W; by level, row, column."""
        found = []
        for number, (stride, level) in enumerate(zip(self.strides, levels, strict=True)):
            shapes = getattr(self, f"shapes_{number}")
            ys, xs = (
                (torch.arange(n, device=shapes.device).to(shapes.dtype) + 0.5) * stride
                for n in level.shape[-2:]
            )
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            centres = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)
            corners = torch.cat([centres - shapes / 2, centres + shapes / 2], dim=-1)
            found.append(corners.reshape(-1, 4))
        return torch.cat(found)


class Downsampling(nn.Sequential):
    """One more level of SSDLite: 1x1, depthwise 3x3 with stride 2, and 1x1 convolutions."""

    def __init__(self, channels: int):
        make = functools.partial(
            ops.Conv2dNormActivation, norm_layer=nn.BatchNorm2d, activation_layer=nn.ReLU6
        )
        half = max(1, channels // 2)
        super().__init__(
            make(channels, half, 1),
            make(half, half, 3, stride=2, groups=half),
            make(half, channels, 1),
        )


class RawLevels(nn.Module):
    """The levels of a backbone as they are, and two coarser ones: the pyramid of SSDLite."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.channels = [*channels, *[channels[-1]] * EXTRA_LEVELS]
        self.extra = nn.ModuleList(Downsampling(channels[-1]) for _ in range(EXTRA_LEVELS))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = list(levels)
        for layer in self.extra:
            levels.append(layer(levels[-1]))
        return levels


class MergedLevels(nn.Module):
    """A feature pyramid network with two coarser levels: the pyramid of RetinaNet and FCOS."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.channels = [width] * (len(channels) + EXTRA_LEVELS)
        extra = ops.feature_pyramid_network.LastLevelP6P7(width, width)
        self.fpn = ops.FeaturePyramidNetwork(list(channels), width, extra)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return list(self.fpn(OrderedDict((str(i), x) for i, x in enumerate(levels))).values())


class Detector(nn.Module):
    """An encoder that returns a feature pyramid, and one of torchvision's detection heads.

    In training mode `forward` returns the tensors that `loss` takes. In evaluation mode it returns
    a box and the score of each class for every anchor, B A 4+K: x1 y1 x2 y2 as shares of the width
    and the height of the image, then K scores in 0..1.

    Args:
        kind: `"ssdlite"`, `"retinanet"` or `"fcos"`.
        encoder: A feature pyramid of timm.
        num_classes: Number of classes K, without background.
        in_chans: Channels of the image.
        width: Channels of the pyramid of RetinaNet and FCOS.
    """

    def __init__(
        self, kind: str, encoder: Any, *, num_classes: int, in_chans: int, width: int = WIDTH
    ):
        super().__init__()
        self.kind, self.num_classes, self.in_chans = kind, num_classes, in_chans
        channels = encoder.feature_info.channels()
        strides = [int(stride) for stride in encoder.feature_info.reduction()]
        strides += [strides[-1] * 2 ** (i + 1) for i in range(EXTRA_LEVELS)]
        self.encoder = encoder
        self.pyramid = RawLevels(channels) if kind == "ssdlite" else MergedLevels(channels, width)
        self.anchors = Anchors(strides, [_SHAPES[kind](stride) for stride in strides])
        self.head = self._new_head(num_classes)
        # torchvision's detector has the loss. It shares the head and is no submodule.
        self.__dict__["_rules"] = _RULES[kind](self.head)

    def _new_head(self, num_classes: int) -> Any:
        channels, count = self.pyramid.channels, self.anchors.per_position
        if self.kind == "ssdlite":
            counts = [count] * len(channels)
            return SSDLiteHead(channels, counts, num_classes + 1, nn.BatchNorm2d)
        if self.kind == "retinanet":
            norm = functools.partial(nn.GroupNorm, GROUPS)
            head: Any = detection.retinanet.RetinaNetHead
            return head(channels[0], count, num_classes, norm_layer=norm)
        return detection.fcos.FCOSHead(channels[0], count, num_classes)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Map images B in_chans H W to the levels of the pyramid, B C H' W' each."""
        return self.pyramid(self.encoder(x))

    def forward(self, x: Tensor) -> Any:
        levels = self.forward_features(x)
        outputs = self.head(levels)
        anchors = self.anchors(levels)
        if self.training:
            counts = [level.shape[2] * level.shape[3] for level in levels]
            return {**outputs, "anchors": anchors, "positions": torch.tensor(counts)}
        height, width = x.shape[-2:]
        boxes = self._boxes(outputs["bbox_regression"], anchors)
        shares = torch.stack([boxes[..., 0::2] / width, boxes[..., 1::2] / height], dim=-1)
        return torch.cat([shares.flatten(-2).clamp(0, 1), self._scores(outputs)], dim=-1)

    def _boxes(self, codes: Tensor, anchors: Tensor) -> Tensor:
        """Return x1 y1 x2 y2 in pixels, B A 4, from the codes of the head."""
        rules: Any = self._rules
        coder = rules.box_coder
        if self.kind == "fcos":
            return coder.decode(codes, anchors.expand_as(codes))
        flat = coder.decode_single(codes.reshape(-1, 4), anchors.expand_as(codes).reshape(-1, 4))
        return flat.reshape(codes.shape)

    def _scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the score of each class, B A K."""
        logits = outputs["cls_logits"]
        if self.kind == "ssdlite":
            return logits.softmax(dim=-1)[..., 1:]  # the first is the background
        if self.kind == "fcos":
            return (logits.sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
        return logits.sigmoid()

    def loss(self, outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        """Return torchvision's loss: classification, boxes and, for FCOS, centres.

        Args:
            outputs: What `forward` returned in training mode.
            targets: B M 6: class, x1 y1 x2 y2 in pixels, and 1 for a crowd. Rows of class -1 fill
                up the tensor; they and crowds are left out.
        """
        rules: Any = self._rules
        head = {key: y.float() for key, y in outputs.items() if key not in ("anchors", "positions")}
        anchors = [outputs["anchors"].float()] * len(targets)
        kept = [rows[(rows[:, 0] >= 0) & (rows[:, CROWD] == 0)] for rows in targets]
        first = int(self.kind == "ssdlite")  # class 0 of SSD is the background
        wanted = [{"boxes": rows[:, 1:5], "labels": rows[:, 0].long() + first} for rows in kept]
        if self.kind == "fcos":
            losses = rules.compute_loss(wanted, head, anchors, outputs["positions"].tolist())
        elif self.kind == "retinanet":
            losses = rules.compute_loss(wanted, head, anchors)
        else:
            losses = rules.compute_loss(wanted, head, anchors, self._matches(wanted, anchors[0]))
        return torch.stack(list(losses.values())).sum()

    def _matches(self, wanted: list[dict[str, Tensor]], anchors: Tensor) -> list[Tensor]:
        """Return the number of the target of each anchor for each image; -1 for none."""
        rules: Any = self._rules
        return [
            rules.proposal_matcher(ops.box_iou(target["boxes"], anchors))
            if len(target["boxes"])
            else torch.full((len(anchors),), -1, device=anchors.device)
            for target in wanted
        ]

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """Return the last layers, which compute the logits."""
        return tuple(self.get_submodule(name) for name in self.classifier_names())

    def classifier_names(self) -> tuple[str, ...]:
        """Return the dotted names of the layers that compute the logits."""
        if self.kind != "ssdlite":
            return ("head.classification_head.cls_logits",)
        levels = self.head.classification_head.module_list
        return tuple(f"head.classification_head.module_list.{i}.1" for i in range(len(levels)))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classification head by a new one for `num_classes`."""
        self.num_classes = whole_number(num_classes, "num_classes", 1)
        like = next(self.head.parameters())
        self.head.classification_head = self._new_head(num_classes).classification_head.to(like)

    def no_weight_decay(self) -> set[str]:
        """Return the names of tables and scales that are exempt from weight decay."""
        return encoders.no_decay_names(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of the encoder's blocks during training."""
        self.encoder.set_grad_checkpointing(enable)


def _ssd_shapes(stride: int) -> list[tuple[float, float]]:
    """Return SSD's shapes (arXiv 1512.02325, section 2.2): two squares, and ratios 2 and 3."""
    side = float(BASE * stride)
    squares = [(side, side), (side * 2**0.5, side * 2**0.5)]
    roots = [ratio**0.5 for ratio in (2, 3)]
    return squares + [
        shape for r in roots for shape in ((side * r, side / r), (side / r, side * r))
    ]


def _retinanet_shapes(stride: int) -> list[tuple[float, float]]:
    """Return RetinaNet's shapes (arXiv 1708.02002, section 4): three sizes of three ratios."""
    sides = [BASE * stride * 2 ** (i / 3) for i in range(3)]
    return [(side / r**0.5, side * r**0.5) for r in (0.5, 1.0, 2.0) for side in sides]


def _fcos_shapes(stride: int) -> list[tuple[float, float]]:
    """Return the unit of FCOS's distances: a square of the stride."""
    return [(float(stride), float(stride))]


_SHAPES: dict[str, Any] = {
    "ssdlite": _ssd_shapes, "retinanet": _retinanet_shapes, "fcos": _fcos_shapes,
}  # fmt: skip


class _Levels(nn.Module):
    """Stands for a backbone in torchvision's detectors, of which only the loss is used."""

    out_channels = 1


def _ssd(head: nn.Module) -> Any:
    unused: Any = None
    return detection.ssd.SSD(_Levels(), unused, (1, 1), 1, head=head)


_RULES: dict[str, Any] = {
    "ssdlite": _ssd,
    "retinanet": lambda head: detection.RetinaNet(_Levels(), 1, head=head),
    "fcos": lambda head: detection.FCOS(_Levels(), 1, head=head),
}


def create(
    name: str,
    *,
    encoder: str | None,
    pretrained: bool,
    num_classes: int | None = None,
    in_chans: int | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    widths: Mapping[str, int] | None = None,
    min_stride: int = MIN_STRIDE,
    **kwargs: Any,
) -> Detector:
    """Build the detector `name` on top of a backbone.

    Args:
        name: One of `zoo.registry.DETECTORS`.
        encoder: A classification backbone: a name of `zoo.list_models()`, or `"timm/<name>"`.
        pretrained: Load the published weights of the backbone.
        num_classes: Number of classes, without background; None for one.
        in_chans: Channels of the image; None for 3.
        checkpoint_path: Weights of the whole model or of its encoder, to load at the end.
        widths: Widths of a pruned model, as for `zoo.create_model`.
        min_stride: Finest level that is used, in pixels. 8 costs a quarter of 4, and loses objects
            of a few pixels.
        **kwargs: `channels` of the pyramid of RetinaNet and FCOS, a multiple of 32.

    Raises:
        BadInput: An argument is wrong or missing, or the detector does not support the strides of
            the backbone.
        UnknownModel: The backbone does not exist.
    """
    encoder = encoders.required(name, encoder, kwargs)
    known = set() if name == "ssdlite" else {"channels"}
    if unknown := sorted(kwargs.keys() - known):
        key = unknown[0]
        raise BadInput(f"{key}={kwargs[key]!r} has no effect on {name}; leave it out")
    width = whole_number(kwargs.get("channels", WIDTH), "channels", 1)
    if width % GROUPS:
        raise BadInput(f"channels={width} must be a multiple of {GROUPS}")
    levels = _levels(name, encoder, whole_number(min_stride, "min_stride", 1))
    channels = 3 if in_chans is None else in_chans
    pyramid = encoders.build(encoder, levels, pretrained=pretrained, in_chans=channels)
    classes = 1 if num_classes is None else whole_number(num_classes, "num_classes", 1)
    try:
        model = Detector(name, pyramid, num_classes=classes, in_chans=channels, width=width)
    except (RuntimeError, ValueError) as error:
        raise BadInput(
            f"{name} with encoder={encoder} cannot be built: {first_line(error)}"
        ) from error
    encoders.finish(
        model,
        pyramid,
        encoder,
        checkpoint_path,
        new_classes=num_classes is not None,
        new_channels=in_chans is not None,
        widths=widths,
    )
    return model


def _levels(name: str, encoder: str, min_stride: int) -> list[int]:
    """Return the levels of the encoder's pyramid that a detector uses.

    Raises:
        BadInput: Their strides do not double, or all are finer than `min_stride`.
    """
    strides = encoders.strides_of(encoder)
    levels = [i for i, stride in enumerate(strides) if stride >= min_stride]
    used = [strides[i] for i in levels]
    if not used or any(2 * a != b for a, b in zip(used, used[1:], strict=False)):
        raise BadInput(
            f"encoder={encoder} has feature strides {', '.join(map(str, strides))}; {name} needs"
            f" strides that double from min_stride={min_stride} on, such as 4, 8, 16, 32: choose a"
            " backbone such as mobilenetv2_100"
        )
    return levels
