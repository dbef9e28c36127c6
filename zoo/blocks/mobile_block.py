"""The inverted residual whose expansion may be attention (iRMB of EMO, i2RMB of EMOv2).

Also what both networks have in common: how their stages are made of it, the settings of their
norms, the public names of its parts.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import DropPath, linear_rates
from zoo.blocks.folding import (
    affine_inputs,
    batch_norm_affine,
    is_fixed_batch_norm,
    rebuilt,
    scale_outputs,
    split_affine,
)
from zoo.blocks.init import init_linear
from zoo.blocks.norm import LayerNorm2d
from zoo.blocks.scale import LayerScale
from zoo.blocks.sizes import whole_number
from zoo.blocks.window_pairs import WindowPairMixer
from zoo.keys import State, rename

EPS = 1e-6
# Of the four stages: the activation of mixers, and whether all but the first block attend.
ACTS = (nn.SiLU, nn.SiLU, nn.GELU, nn.GELU)
ATTENDS = (False, False, True, True)


class PointwiseMixer(nn.Module):
    """A 1x1 convolution with bias and an activation: the mixer of blocks without attention.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        act: Class of the activation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, act: type[nn.Module]):
        super().__init__()
        self.value = nn.Conv2d(in_channels, out_channels, 1)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.value(x))

    def after_affine(self, scale: Tensor, shift: Tensor) -> "PointwiseMixer":
        """Return a mixer that computes from x what this one does from `scale * x + shift`."""
        return rebuilt(self, value=affine_inputs(self.value, scale, shift))


class MobileBlock(nn.Module):
    """Norm, mixer (it expands), depthwise convolution beside a shortcut, projection.

    EMO, arXiv 2301.01146, fig. 3 and section 3.3. Both shortcuts are there where the stride is 1
    and the channels stay.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels that the mixer gives.
        norm: Of the input.
        mixer: From `in_channels` to `hidden`.
        kernel_size: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        layer_scale: Initial layer scale; none leaves it out.
        drop_path: Probability of leaving the branch out while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        norm: nn.Module,
        mixer: nn.Module,
        kernel_size: int,
        stride: int = 1,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.norm = norm
        self.mixer = mixer
        self.local = ConvNorm(
            hidden, hidden, kernel_size=kernel_size, stride=stride, groups=hidden, act=nn.SiLU
        )
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.scale: nn.Module = nn.Identity()
        if layer_scale is not None:
            self.scale = LayerScale(out_channels, init=layer_scale, spatial=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm(x))
        z = self.local(y)
        if self.residual:
            return x + self.drop_path(self.scale(self.project(y + z)))
        return self.scale(self.project(z))

    def fused(self) -> "MobileBlock":
        """The layer scale in the projection, the norm in a mixer that can take it.

        Attention cannot: it pads with zeros after the norm.
        """
        changes: dict[str, Any] = {}
        if isinstance(self.scale, LayerScale):
            changes |= {"project": scale_outputs(self.project, self.scale.gamma)}
            changes |= {"scale": nn.Identity()}
        mixer: Any = self.mixer
        if hasattr(mixer, "after_affine"):
            if is_fixed_batch_norm(self.norm):
                affine = batch_norm_affine(self.norm)
                changes |= {"norm": nn.Identity(), "mixer": mixer.after_affine(*affine)}
            elif isinstance(self.norm, nn.LayerNorm) and self.norm.elementwise_affine:
                plain, *affine = split_affine(self.norm)
                changes |= {"norm": plain, "mixer": mixer.after_affine(*affine)}
        return rebuilt(self, **changes) if changes else self


def mobile_stages(
    in_channels: int,
    dims: Sequence[int],
    depths: Sequence[int],
    *,
    ratios: Sequence[float],
    head_dims: Sequence[int],
    kernels: Sequence[int],
    window_size: int,
    close: bool,
    raw_values: bool,
    layer_scale: float | None,
    drop_path_rate: float,
) -> list[list[MobileBlock]]:
    """Return the blocks of four stages: convolutions, then attention; the first of each halves.

    Args:
        in_channels: Channels of the input of the first stage.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        ratios: Expansion of the blocks; the first of a stage has twice as much.
        head_dims: Channels of a head's queries and keys, stage by stage.
        kernels: Sides of the depthwise filters, stage by stage.
        window_size: Side of the windows of attention.
        close: Attend in close windows as well as in far ones.
        raw_values: Project values after the attention.
        layer_scale: Initial layer scale; none leaves it out.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.

    Raises:
        BadInput: `window_size` is no side of a window.
    """
    whole_number(window_size, "window_size", 1)
    stages, before = [], in_channels
    for i, rates in enumerate(linear_rates(drop_path_rate, list(depths))):
        blocks = []
        for j, rate in enumerate(rates):
            hidden = int(before * ratios[i] * (1 if j else 2))
            mixer: nn.Module = PointwiseMixer(before, hidden, act=ACTS[i])
            if j and ATTENDS[i]:
                mixer = WindowPairMixer(
                    before,
                    hidden,
                    side=window_size,
                    head_dim=head_dims[i],
                    act=ACTS[i],
                    close=close,
                    raw_values=raw_values,
                )
            block = MobileBlock(
                before,
                dims[i],
                hidden=hidden,
                norm=LayerNorm2d(before) if ATTENDS[i] else nn.BatchNorm2d(before),
                mixer=mixer,
                kernel_size=kernels[i],
                stride=1 if j else 2,
                layer_scale=layer_scale,
                drop_path=rate,
            )
            blocks.append(block)
            before = dims[i]
        stages.append(blocks)
    return stages


def init_weights(module: nn.Module) -> None:
    """Set the epsilon of a norm, draw the weights of a linear layer, as both networks do."""
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        module.eps = EPS
    init_linear(module)


def from_public(state: State, stem: list[tuple[str, str]]) -> State:
    """Rename the parameters of the authors' EMO or EMOv2 to ours.

    Args:
        state: The tensors by public names (`stage3.1.qk.conv.weight`).
        stem: Rules of `zoo.keys.rename` for what begins with `stage0`.
    """
    block, ours = r"stage([1-4])\.(\d+)\.", r"stages.\1.blocks.\2."
    rules = [
        *stem,
        (block + r"norm\.(?:norm\.)?", ours + "norm."),  # layer norms are one level deeper
        (block + r"(?:eops\.0\.)?qk\.conv\.", ours + "mixer.qk."),
        (block + r"(?:eops\.0\.)?(?:v|net)\.conv\.", ours + "mixer.value."),
        (block + r"conv_local\.", ours + "local."),
        (block + r"proj\.conv\.", ours + "project."),
        (block + r"ls\.", ours + "scale."),
        (r"norm\.norm\.", "norm."),
        (r"head\.", "head.fc."),
    ]
    state = rename(state, rules)
    return {k: v.flatten() if k.endswith(".gamma") else v for k, v in state.items()}
