"""Once-for-All's space of ResNet-50D: its supernet, and the networks that are cut out of it.

Paper: Cai et al., "Once for All: Train One Network and Specialize it for Efficient Deployment"
       (arXiv 1908.09791), section 4; the blocks are those of ResNet-D (arXiv 1812.01187).
Code:  github.com/mit-han-lab/once-for-all @ f03b2673db31 (MIT).
Here:  nothing is registered: the files that describe the eight published networks of this space are
       gone from where the README points. `from_config` reads one if you have it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import make_divisible
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.heads import ClassifierHead
from zoo.blocks.init import init_conv
from zoo.blocks.residual import Residual, resnet_unit
from zoo.errors import BadInput, first_line
from zoo.keys import KeyStyle, convert_keys, numbered_blocks

STEM, DIMS = 64, (256, 512, 1024, 2048)
MOST_BLOCKS = (4, 4, 6, 4)
MOST_LEFT_OUT = 2  # blocks of a stage that a network may lack
RATIOS = (0.2, 0.25, 0.35)
WIDTHS = (0.65, 0.8, 1.0)


@dataclass(frozen=True)
class Setting:
    """A network of the space, as the public code describes it.

    Attributes:
        depths: Stem, then stages: blocks besides the fewest, 0 to 2; the stem has its shortcut
            with 2 only.
        ratios: Width inside each of the 18 blocks of the largest network, over its output.
        widths: Index of the width of the stem's middle, of its output, and of each stage.
    """

    depths: Sequence[int]
    ratios: Sequence[float]
    widths: Sequence[int]

    def __post_init__(self) -> None:
        checks = (
            ("depths", self.depths, 5, range(MOST_LEFT_OUT + 1)),
            ("ratios", self.ratios, sum(MOST_BLOCKS), RATIOS),
            ("widths", self.widths, 6, range(len(WIDTHS))),
        )
        for name, values, count, allowed in checks:
            if len(values) != count or not all(value in allowed for value in values):
                raise BadInput(f"{name}={list(values)!r}: give {count} of {list(allowed)}")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `SearchedResNet`."""
        stems = [make_divisible(STEM * WIDTHS[i]) for i in self.widths[:2]]
        dims, hidden, first = [], [], 0
        for i, most in enumerate(MOST_BLOCKS):
            dims.append(make_divisible(DIMS[i] * WIDTHS[self.widths[2 + i]]))
            count = most - MOST_LEFT_OUT + self.depths[1 + i]
            ratios = self.ratios[first : first + count]
            hidden.append([make_divisible(round(dims[i] * ratio)) for ratio in ratios])
            first += most
        return {
            "stem_dims": (make_divisible(stems[0] // 2), stems[1]),
            "stem_residual": self.depths[0] == MOST_LEFT_OUT,
            "dims": dims,
            "hidden": hidden,
        }


LARGEST = Setting((2,) * 5, (0.35,) * 18, (2,) * 6)


class Stem(nn.Module):
    """Two 3x3 convolutions, with a third one and its shortcut between them, then max pooling.

    Args:
        in_channels: Channels of the image.
        dims: Channels of the middle and of the output.
        residual: Whether the third convolution is there.
    """

    def __init__(self, in_channels: int, dims: tuple[int, int], *, residual: bool):
        super().__init__()
        middle, out = dims
        self.conv1 = ConvNorm(in_channels, middle, kernel_size=3, stride=2, act=nn.ReLU)
        self.residual: nn.Module = nn.Identity()
        if residual:
            self.residual = Residual(ConvNorm(middle, middle, kernel_size=3, act=nn.ReLU))
        self.conv2 = ConvNorm(middle, out, kernel_size=3, act=nn.ReLU)
        self.pool = nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv2(self.residual(self.conv1(x))))  # B C H/4 W/4


class SearchedResNet(Backbone):
    """A ResNet-50D with any widths: four stages of bottlenecks at strides 4, 8, 16 and 32.

    Args:
        stem_dims: Channels of the middle and of the output of the stem.
        stem_residual: Whether the stem has a convolution with a shortcut.
        dims: Channels of each stage.
        hidden: Channels inside each block of each stage.
    """

    def __init__(
        self,
        *,
        stem_dims: tuple[int, int],
        stem_residual: bool,
        dims: Sequence[int],
        hidden: Sequence[Sequence[int]],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        stages, before = [], stem_dims[1]
        rates = drop_path_rates(drop_path_rate, [len(widths) for widths in hidden])
        for i, widths in enumerate(hidden):
            blocks = []
            for j, (width, rate) in enumerate(zip(widths, rates[i], strict=True)):
                stride = 2 if i and not j else 1
                blocks.append(
                    resnet_unit(
                        before, dims[i], hidden=width, stride=stride, pooled=True, drop_path=rate
                    )
                )
                before = dims[i]
            stages.append(Stage(blocks))
        super().__init__(
            stem=Stem(in_chans, stem_dims, residual=stem_residual),
            stages=stages,
            norm=nn.Identity(),
            head=ClassifierHead(before, num_classes, pool=global_pool, drop_rate=drop_rate),
            channels=list(dims),
            strides=[4, 8, 16, 32],
            in_chans=in_chans,
        )
        self.apply(init_conv)


def _rows(model: SearchedResNet, prefix: str = "") -> list[tuple[str, str]]:
    """Return the rows; the public code numbers the blocks through all stages."""
    rows = [(r"input_stem\.0\.", f"{prefix}stem.conv1.")]
    if isinstance(model.stem.residual, Residual):
        rows.append((r"input_stem\.1\.conv\.", f"{prefix}stem.residual.inner."))
    rows += [
        (r"input_stem\.[12]\.", f"{prefix}stem.conv2."),
        (r"classifier\.linear\.(?:linear\.)?", f"{prefix}head.fc."),
    ]
    for number, (s, j, block) in enumerate(numbered_blocks(model)):
        new = f"{prefix}stages.{s}.blocks.{j}."
        rows.append((rf"blocks\.{number}\.conv(\d)\.", new + "branch.{1-1}."))
        if isinstance(block.shortcut, nn.Sequential):
            last = len(block.shortcut) - 1
            rows.append((rf"blocks\.{number}\.downsample\.", f"{new}shortcut.{last}."))
    return rows


INSIDE = ((r"\.bn\.bn\.", ".norm."), (r"\.bn\.", ".norm."), (r"\.conv\.conv\.", ".conv."))

SearchedResNet.key_styles = (
    KeyStyle(
        "mit-han-lab/once-for-all", "input_stem.0.conv.weight", rows=_rows, inside=INSIDE[1:2]
    ),
)


class ResNetSupernet(nn.Module):
    """All networks of the space, which share the weights of the largest one.

    A network takes the first blocks of each stage and the first channels of each layer. What it
    computes is what the network that `extract` returns computes; gradients reach the shared
    weights.

    Args:
        num_classes: Number of logits.
    """

    key_styles: Any = (
        KeyStyle(
            "mit-han-lab/once-for-all supernet",
            "input_stem.0.conv.conv.weight",
            rows=lambda model: _rows(model.largest, "largest."),
            inside=INSIDE,
        ),
    )

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.num_classes = num_classes
        self.largest = self.build(LARGEST)

    def build(self, setting: Setting) -> SearchedResNet:
        """Build a network with weights of its own."""
        return SearchedResNet(**setting.arguments(), num_classes=self.num_classes)

    def weights(self, network: SearchedResNet) -> dict[str, Tensor]:
        """Return the shared weights by the names of a network; gradients flow through them."""
        shared: dict[str, Any] = dict(self.largest.named_parameters())
        shared |= dict(self.largest.named_buffers())
        taken = {}
        for key, like in network.state_dict().items():
            tensor = shared[key]
            tensor = tensor[: len(like)] if tensor.ndim else tensor
            taken[key] = tensor[:, : like.shape[1]] if tensor.ndim > 1 else tensor
        return taken

    def forward(self, x: Tensor, setting: Setting) -> Tensor:
        """Compute the logits of a network for images B 3 H W."""
        with torch.device("meta"):
            network = self.build(setting)
        network.train(self.training)
        return torch.func.functional_call(network, self.weights(network), (x,))


def extract(supernet: ResNetSupernet, setting: Setting) -> SearchedResNet:
    """Cut a network out of a supernet: an ordinary backbone with weights of its own.

    Its batch norm statistics are those of the supernet and belong to another network: call
    `zoo.recalibrate(network, batches, "once_for_all")`.
    """
    first = next(supernet.parameters())
    network = supernet.build(setting).to(first.device, first.dtype).train(supernet.training)
    with torch.no_grad():
        network.load_state_dict(supernet.weights(network))
    return network


def from_state(state: Mapping[str, Tensor]) -> SearchedResNet:
    """Build a published network of this space from its weights, whose shapes describe it.

    The eight specialised networks of the public code, such as `resnet50D_MAC@4.1B_top1@79.8`, are
    not registered, because no description of them is public apart from their files.

    Args:
        state: The state dict of the file, under the names of the public code.

    Returns:
        The network with these weights, in evaluation mode.

    Raises:
        BadInput: The weights are not those of such a network.
    """
    try:
        sizes = {key: tensor.shape for key, tensor in state.items()}
        last = max(int(key.split(".")[1]) for key in sizes if key.startswith("blocks."))
        dims, hidden = [], []
        for number in range(last + 1):
            if number == 0 or f"blocks.{number}.downsample.conv.weight" in sizes:
                dims.append(sizes[f"blocks.{number}.conv3.conv.weight"][0])
                hidden.append([])
            hidden[-1].append(sizes[f"blocks.{number}.conv1.conv.weight"][0])
        residual = "input_stem.1.conv.conv.weight" in sizes
        out = sizes[f"input_stem.{1 + residual}.conv.weight"][0]
        network = SearchedResNet(
            stem_dims=(sizes["input_stem.0.conv.weight"][0], out),
            stem_residual=residual,
            dims=dims,
            hidden=hidden,
            num_classes=len(state["classifier.linear.weight"]),
            in_chans=sizes["input_stem.0.conv.weight"][1],
        )
        network.load_state_dict(convert_keys(dict(state), network))
    except (KeyError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise BadInput(
            f"state has no weights of a static network of the ResNet-50D space"
            f" ({first_line(error)}); give the state dict of a file of Once-for-All"
        ) from error
    return network.eval()


def from_config(config: dict[str, Any]) -> SearchedResNet:
    """Build a published network of this space from the content of its file `net.config`.

    Args:
        config: `input_stem`, `blocks` and `classifier`, as the public code writes them.

    Raises:
        BadInput: The description is not that of such a network.
    """
    try:
        stem, blocks = config["input_stem"], config["blocks"]
        stages: list[list[dict[str, Any]]] = []
        for block in blocks:
            if not stages or block["stride"] == 2:
                stages.append([])
            stages[-1].append(block)
        return SearchedResNet(
            stem_dims=(stem[0]["out_channels"], stem[-1]["out_channels"]),
            stem_residual=len(stem) == 3,
            dims=[stage[-1]["out_channels"] for stage in stages],
            hidden=[[block["mid_channels"] for block in stage] for stage in stages],
            num_classes=config["classifier"]["out_features"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise BadInput(
            f"config is no network of the ResNet-50D space ({error!r}); give the content of a"
            " net.config of Once-for-All"
        ) from error
