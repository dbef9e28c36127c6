"""The base class of all models: timm's methods, derived from four parts.

A family builds `stem`, `stages`, `norm` and `head`, and states the channels and the stride of each
stage. `Backbone` derives what timm's users expect: `forward_features`, `forward_head`,
`forward_intermediates`, `reset_classifier`, `feature_info`, `group_matcher` and so on.

Feature maps are B C H W throughout. In models with a class token, stages pass tokens B N C to each
other; feature levels are feature maps without the class token, and the last feature map has one
row that contains all tokens, B C 1 N.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.blocks.heads import ClassifierHead
from zoo.blocks.tokens import to_map, to_row
from zoo.errors import BadInput
from zoo.keys import KeyStyle
from zoo.registry import register

torch.fx.wrap("to_map")
torch.fx.wrap("to_row")


class Stage(nn.Module):
    """An optional downsampling layer, then blocks of one resolution and width.

    Args:
        blocks: Applied in order, each from B C H W to B C H W.
        downsample: Applied first; None if the first block downsamples, or nothing does.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None):
        super().__init__()
        self.downsample = downsample if downsample is not None else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False
        self.source: Any = None  # index of an earlier stage whose output is read as well

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        return self.run_blocks(self.downsample(x))

    def run_blocks(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x
        return self.blocks(x)


class JoinedStage(Stage):
    """A stage whose output also has the channels of its downsampling layer, which come first."""

    def run(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        return torch.cat([x, self.run_blocks(x)], dim=1)  # B C+C' H W


class LinkedStage(Stage):
    """A stage with a skip connection from an earlier stage.

    Args:
        blocks: As in `Stage`.
        source: Index of the earlier stage.
        link: Called with the output of that stage and the input of this one; its result is added
            to the input.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, source: int, link: nn.Module):
        super().__init__(blocks)
        self.source = source
        self.link = link

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:  # type: ignore[override]
        return self.run(x + self.link(earlier, x))


class Stages(nn.Sequential):
    """A sequence of stages; a `LinkedStage` also gets the output of its source."""

    sources: list[int]

    def __init__(self, *stages: Any):
        super().__init__(*stages)
        read: list[Any] = [stage.source for stage in self]
        self.sources = sorted({source for source in read if source is not None})

    def forward(self, x: Tensor) -> Tensor:
        kept: dict[int, Tensor] = {}
        for i, stage in enumerate(self):
            x = stage(x) if stage.source is None else stage(x, kept[stage.source])  # type: ignore
            if i in self.sources:
                kept[i] = x
        return x


class Backbone(nn.Module):
    """A stem, stages, a norm and a head, under timm's contract.

    Constructors of families take the arguments that timm's models take, under these names:
    `num_classes` (logits; 0 leaves the classifier out), `in_chans` (channels of the image),
    `img_size` (pixels, one number or height and width: the image size for which position tables
    and attention biases are made; for other sizes they are resampled), `drop_rate` (dropout before
    the classifier), `drop_path_rate` (stochastic depth of the last block; it grows linearly from 0)
    and `global_pool` (`"avg"`, `"max"` or `""`; `"token"` where there is a class token).

    Args:
        stem: Maps images B in_chans H W to the input of the first stage.
        stages: Applied in order.
        norm: The last layer before the head: a norm, or a convolution.
        head: Pooling and classifier: a `ClassifierHead`, or a module with the same methods. It has
            a `hidden_size` if its classifier does not read `num_features` channels.
        channels: Output channels of each stage.
        strides: Total stride of each stage.
        in_chans: Channels of the image.
        output_stride: Largest stride of a dilated model; the feature levels stay those of
            `strides`, but their reductions do not exceed it.
        num_prefix_tokens: Number of class tokens. With class tokens, the last stage returns tokens
            and earlier stages return tokens or feature maps; or all stages return feature maps and
            `norm` adds the token.
        grid_margin: Pixels added to each side before it is divided by the stride: a side of s
            pixels has (s + margin) // stride tokens.
    """

    key_styles: ClassVar[tuple[KeyStyle, ...]] = ()
    output_fmt: ClassVar[str] = "NCHW"
    no_features: ClassVar[str] = ""  # why there are no feature maps to extract

    @classmethod
    def register_family(
        cls, variants: Mapping[str, Mapping[str, Any]], key_styles: Sequence[KeyStyle] = ()
    ) -> None:
        """Register variants of this class and the key styles of their published weights.

        Args:
            variants: Name -> arguments of the constructor.
            key_styles: Styles of published checkpoints.
        """
        cls.key_styles = tuple(key_styles)
        for name, arguments in variants.items():
            register(name, partial(cls, **arguments))

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        norm: nn.Module,
        head: Any,
        channels: Sequence[int],
        strides: Sequence[int],
        in_chans: int,
        output_stride: int | None = None,
        num_prefix_tokens: int = 0,
        grid_margin: int = 0,
    ):
        super().__init__()
        self.stem = stem
        self.stages = Stages(*stages)
        self.norm = norm
        self.head = head
        self.in_chans = in_chans
        self.strides = list(strides)
        self.num_prefix_tokens, self.grid_margin = num_prefix_tokens, grid_margin
        self.num_classes = head.num_classes
        self.num_features = head.num_features
        self.head_hidden_size = getattr(head, "hidden_size", head.num_features)
        self.feature_info = feature_levels(channels, strides, output_stride)
        self.pruned = False  # whether `prune_intermediate_layers` removed the norm

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images B in_chans H W to the normalised last feature map B num_features H/s W/s.

        With a class token, the result is one row of all tokens, B num_features 1 N, the class token
        first. A pruned model returns the feature map of its last level.
        """
        y = self.stages(self.stem(x))
        if self.pruned:
            return self._level(y, -1, x.shape[-2], x.shape[-1])
        return self._close(y)

    def _close(self, x: Tensor) -> Tensor:
        return self.norm(to_row(x) if self.num_prefix_tokens else x)

    def forward_head(self, x: Tensor, pre_logits: bool = False):
        """Map the last feature map to logits B num_classes, or to the classifier's input."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor):
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last feature map and those of some levels of `feature_info`.

        Args:
            x: Images, B in_chans H W.
            indices: Levels to return; a number n means the last n levels, None all levels.
            norm: Apply `self.norm` to a feature map of the last stage.
            stop_early: Skip stages after the last requested level.
            output_fmt: Only `"NCHW"` is supported.
            intermediates_only: Return only the list.

        Raises:
            BadInput: A level does not exist, or the format is not supported.
        """
        if output_fmt != "NCHW":
            raise BadInput(f"output_fmt={output_fmt!r} is not supported; only 'NCHW' is")
        levels = take_levels(len(self.feature_info), indices, "indices")
        taken = [self.feature_info[level]["stage"] for level in levels]
        stages = list(self.stages)
        if stop_early or intermediates_only:
            stages = stages[: max(taken) + 1]
        height, width = x.shape[-2:]
        x, maps, kept = self.stem(x), {}, {}
        for i, stage in enumerate(stages):
            x = stage(x) if stage.source is None else stage(x, kept[stage.source])  # type: ignore
            if i in self.stages.sources:
                kept[i] = x
            maps[i] = self._level(x, i, height, width)
        last = len(self.stages) - 1
        to_the_end = len(stages) == last + 1 and not self.pruned
        normed = self._close(x) if to_the_end else maps[len(stages) - 1]
        if norm and last in maps:
            maps[last] = self.norm(maps[last]) if self.num_prefix_tokens else normed
        intermediates = [maps[i] for i in taken]
        return intermediates if intermediates_only else (normed, intermediates)

    def _level(self, x: Tensor, stage: int, height: int, width: int) -> Tensor:
        """Return the output of a stage as a feature map, for images of that height and width."""
        if not self.num_prefix_tokens:
            return x
        stride = self.strides[stage]
        return to_map(
            x, (height + self.grid_margin) // stride, (width + self.grid_margin) // stride
        )

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove everything after the last requested level; `forward` then returns that level.

        The norm and the head belong to the last stage and are removed with it.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Remove the norm even if the last stage is kept.
            prune_head: Remove the head even if the last stage is kept.

        Returns:
            The requested levels, counted from 0.

        Raises:
            BadInput: A level does not exist.
        """
        levels = take_levels(len(self.feature_info), indices, "indices")
        last = self.feature_info[max(levels)]
        cut = last["stage"] + 1 < len(self.stages)
        self.feature_info = self.feature_info[: max(levels) + 1]
        kept: Any = self.stages[: last["stage"] + 1]
        self.stages, self.strides = kept, self.strides[: last["stage"] + 1]
        if cut or prune_norm:
            self.norm, self.pruned = nn.Identity().train(self.training), True
            self.num_features = last["num_chs"]
        if cut or prune_norm or prune_head:
            self.head = ClassifierHead(self.num_features, 0, pool="").train(self.training)
            self.head_hidden_size, self.num_classes = self.num_features, 0
        return levels

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return the classifier, or a tuple if there are two."""
        layers = tuple(self.head.get_submodule(name) for name in self.head.classifiers())
        return layers[0] if len(layers) == 1 else layers

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and optionally the pooling; 0 classes remove the classifier."""
        self.head.reset(num_classes, global_pool)
        first = next(self.stem.parameters())
        self.head.to(first.device, first.dtype)
        self.num_classes = num_classes

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return the logits of both classifiers as a pair during training.

        Raises:
            BadInput: The model has only one classifier.
        """
        if not hasattr(self.head, "distilled_training"):
            raise BadInput(
                f"{type(self).__name__} has one classifier, but distillation needs two; "
                "choose a model with the argument distillation"
            )
        self.head.__dict__["distilled_training"] = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks during training, and recompute the rest when needed."""
        for stage in self.stages:
            stage.__dict__["grad_checkpointing"] = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that assign parameters to layers, for layer decay (timm's format)."""
        blocks = [
            (r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(?:downsample|link)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": blocks[:1] + blocks[2:] if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of tables and scales that are exempt from weight decay."""
        return {
            f"{path}.{name}" if path else name
            for path, module in self.named_modules()
            for name in getattr(module, "no_decay", ())
            if getattr(module, name).requires_grad
        }

    def classifier_names(self) -> tuple[str, ...]:
        """Return the dotted names of the classifiers."""
        return tuple(f"head.{name}" for name in self.head.classifiers())

    def first_conv_name(self) -> str:
        """Return the dotted name of the convolution that reads the image."""
        return next(
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d | nn.Conv3d)
        )


def feature_levels(
    channels: Sequence[int], strides: Sequence[int], output_stride: int | None = None
) -> list[dict]:
    """Return the levels of the feature pyramid, in timm's format: the last stage of each stride.

    If all stages have the same stride, each is a level, as in timm's isotropic models.
    """
    isotropic = len(set(strides)) == 1
    return [
        {
            "num_chs": channels[i],
            "reduction": min(strides[i], output_stride or strides[i]),
            "module": f"stages.{i}",
            "stage": i,
        }
        for i in range(len(strides))
        if isotropic or i + 1 == len(strides) or strides[i + 1] != strides[i]
    ]


def take_levels(
    count: int, indices: int | Sequence[int] | None, name: str = "out_indices"
) -> list[int]:
    """Return the requested levels, counted from 0.

    Args:
        count: Number of levels of the model.
        indices: Levels, also negative ones; a number n means the last n levels, None all levels.
        name: Name of the argument, for messages.

    Raises:
        BadInput: A level does not exist, or no level is given.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise BadInput(f"{name}={indices}: choose between 1 and {count} levels")
        return list(range(count - indices, count))
    given = list(indices) if isinstance(indices, Iterable) else [indices]
    if not given or not all(isinstance(i, int) and -count <= i < count for i in given):
        raise BadInput(f"{name}={given}: choose from the model's {count} levels, 0 to {count - 1}")
    return [i % count for i in given]


class FeatureExtractor(nn.Module):
    """The part of a model that computes a feature pyramid, for `features_only=True`.

    Parameters have the same names as in the whole model. `forward` returns a list of feature maps
    B C H W, one for each requested level.

    Args:
        model: The whole model; its modules are shared, not copied.
        out_indices: Levels of `model.feature_info`, in the requested order; None means all.
    """

    is_partial = True  # weights of other parts are ignored when a checkpoint is loaded
    sources: list[int]  # TorchScript cannot infer the type of an empty list

    def __init__(self, model: Backbone, out_indices: int | Sequence[int] | None = None):
        super().__init__()
        from timm.models import FeatureInfo

        if model.no_features:
            raise BadInput(model.no_features)

        levels = take_levels(len(model.feature_info), out_indices)
        self.sources = list(model.stages.sources)
        self.taken = [int(model.feature_info[level]["stage"]) for level in levels]
        self.stem = model.stem
        self.stages = model.stages[: max(self.taken) + 1]
        self.feature_info = FeatureInfo(model.feature_info, tuple(levels))
        self.key_styles = model.key_styles
        self.in_chans = model.in_chans
        self.output_fmt = model.output_fmt
        self.strides = model.strides
        self.num_prefix_tokens, self.grid_margin = model.num_prefix_tokens, model.grid_margin

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2] + self.grid_margin, x.shape[-1] + self.grid_margin
        x = self.stem(x)
        maps: dict[int, Tensor] = {}
        kept: dict[int, Tensor] = {}
        for i, stage in enumerate(self.stages):
            x = stage(x) if stage.source is None else stage(x, kept[stage.source])  # type: ignore
            if i in self.sources:
                kept[i] = x
            if i in self.taken:
                maps[i] = x
                if self.num_prefix_tokens:
                    stride = self.strides[i]
                    maps[i] = to_map(x, height // stride, width // stride)
        return [maps[i] for i in self.taken]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of blocks during training, and recompute the rest when needed."""
        for stage in self.stages:
            stage.__dict__["grad_checkpointing"] = enable
