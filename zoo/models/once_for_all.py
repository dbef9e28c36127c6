"""Once-for-All: networks that were searched in a supernet, here as ordinary networks.

Paper: Cai et al., "Once for All: Train One Network and Specialize it for Efficient Deployment"
       (arXiv 1908.09791), section 4; the spaces are those of MobileNetV3 (arXiv 1905.02244) and
       ProxylessNAS (arXiv 1812.00332).
       Termritthikun et al., "EEEA-Net" (arXiv 2108.06156): C1 and C2 are in the first space.
Code:  github.com/mit-han-lab/once-for-all @ f03b2673db31 (MIT); its published networks are
       described in github.com/han-cai/files @ a7c9bcd525e1.
       C1, C2: github.com/jitdee-ai/darmo @ bbae22580168 (Apache-2.0).
Here:  a network is a text, two digits a block: the kernel size and the expansion. A `Supernet` is
       not a backbone, but the networks that `extract` cuts out of it are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import make_divisible
from torch import Tensor, nn

from zoo.backbone import Backbone, Stage
from zoo.blocks.conv import ConvNorm
from zoo.blocks.drop import drop_path_rates
from zoo.blocks.elastic import KernelTransform, parse_blocks
from zoo.blocks.heads import ClassifierHead, HiddenHead
from zoo.blocks.inverted_residual import InvertedResidual, init_weights
from zoo.blocks.squeeze import SqueezeExcite
from zoo.errors import BadInput, unknown_value
from zoo.keys import KeyStyle, numbered_blocks, prefixed


@dataclass(frozen=True)
class Space:
    """What all networks of a search space share.

    Attributes:
        dims: Channels of the stem, then of each stage; stage 0 has one block that is not searched.
        strides: Stride of each stage.
        acts: Class of the activation of each stage.
        gated: Whether the blocks of each stage have squeeze and excitation.
        last: Channels of the last convolution.
        hidden: Width of the head's hidden layer; 0: the head has none.
        eps: Epsilon of the norms.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    acts: tuple[type[nn.Module], ...]
    gated: tuple[bool, ...]
    last: int
    hidden: int = 0
    eps: float = 1e-5


SPACES = {
    "mobilenetv3": Space(
        dims=(16, 16, 24, 40, 80, 112, 160),
        strides=(1, 2, 2, 2, 1, 2),
        acts=(*[nn.ReLU] * 3, *[nn.Hardswish] * 3),
        gated=(False, False, True, False, True, True),
        last=960,
        hidden=1280,
    ),
    "proxyless": Space(
        dims=(32, 16, 24, 40, 80, 96, 192, 320),
        strides=(1, 2, 2, 2, 1, 2, 1),
        acts=(nn.ReLU6,) * 7,
        gated=(False,) * 7,
        last=1280,
        eps=1e-3,
    ),
}


class SearchedBlock(InvertedResidual):
    """An inverted residual; hard swish nearly halves small values, which random weights make up."""

    branch_gains = ("project.norm",)


class SearchedNet(Backbone):
    """A stem, a block without expansion, and stages of searched inverted residuals.

    Args:
        space: `"mobilenetv3"` or `"proxyless"`.
        width: Factor of all numbers of channels.
        blocks: Kernel size and expansion of the blocks of each stage, such as `"33 54 / 76"`.
    """

    def __init__(
        self,
        *,
        space: str,
        width: float = 1.0,
        blocks: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        if space not in SPACES:
            raise BadInput(unknown_value("space", space, tuple(SPACES)))
        frame = SPACES[space]
        stem, *dims = (make_divisible(dim * width) for dim in frame.dims)
        table = [[(3, 1)], *parse_blocks(blocks, len(dims) - 1)]
        stages, strides, before = [], [], stem
        rates = drop_path_rates(drop_path_rate, [len(rows) for rows in table])
        for i, rows in enumerate(table):
            units = []
            for j, ((kernel_size, expansion), rate) in enumerate(zip(rows, rates[i], strict=True)):
                hidden = before * expansion
                gate = None
                if frame.gated[i]:
                    inner = make_divisible(hidden // 4)
                    gate = SqueezeExcite(hidden, inner, gate=nn.Hardsigmoid)
                unit = SearchedBlock(
                    before,
                    dims[i],
                    stride=1 if j else frame.strides[i],
                    expansion=expansion,
                    kernel_size=kernel_size,
                    act=frame.acts[i],
                    gate=gate,
                    drop_path=rate,
                    eps=frame.eps,
                )
                units.append(unit)
                before = dims[i]
            stages.append(Stage(units))
            strides.append(frame.strides[i] * (strides[-1] if strides else 2))
        act, last = frame.acts[-1], make_divisible(frame.last * width)
        settings: dict[str, Any] = dict(pool=global_pool, drop_rate=drop_rate)
        head = ClassifierHead(last, num_classes, **settings)
        if frame.hidden:
            hidden = make_divisible(frame.hidden * width)
            head = HiddenHead(last, num_classes, hidden_size=hidden, bias=False, **settings)
        super().__init__(
            stem=ConvNorm(in_chans, stem, kernel_size=3, stride=2, act=act, eps=frame.eps),
            stages=stages,
            norm=ConvNorm(before, last, act=act, eps=frame.eps),
            head=head,
            channels=dims,
            strides=strides,
            in_chans=in_chans,
        )
        self.apply(init_weights)


PARTS = (
    (r"inverted_bottleneck\.", "expand."),
    (r"depth_conv\.se\.fc\.", "gate."),
    (r"depth_conv\.", "depthwise."),
    (r"point_linear\.", "project."),
)


def _rows(model: SearchedNet) -> list[Any]:
    """Return the rows; the public code numbers the blocks through all stages."""
    hidden = isinstance(model.head, HiddenHead)
    last = (r"feature_mix_layer\.", "norm.")
    if hidden:
        last = (r"feature_mix_layer\.conv\.", "head.hidden.0.")
    rows: list[Any] = [
        (r"first_conv\.", "stem."),
        (r"final_expand_layer\.", "norm."),
        last,
        (r"classifier\.linear\.", "head.fc."),
    ]
    for number, (s, j, _) in enumerate(numbered_blocks(model)):
        old = rf"blocks\.{number}\.(?:mobile_inverted_)?conv\."
        rows += prefixed(old, f"stages.{s}.blocks.{j}.", PARTS)
    return rows


KEY_STYLES = (
    KeyStyle(
        "mit-han-lab/once-for-all",
        "first_conv.conv.weight",
        rows=_rows,
        inside=((r"\.bn\.", ".norm."),),
    ),
)


class Supernet(nn.Module):
    """All networks of a space, which share the weights of the largest one.

    A network takes the first blocks of each stage, the first channels of each layer and the middle
    of each kernel, transformed by `KernelTransform`. What it computes is what the network that
    `extract` returns computes; gradients reach the shared weights.

    Args:
        space: `"mobilenetv3"` or `"proxyless"`.
        width: Factor of all numbers of channels.
        num_classes: Number of logits.
    """

    def __init__(self, space: str, width: float = 1.0, num_classes: int = 1000):
        super().__init__()
        if space not in SPACES:
            raise BadInput(unknown_value("space", space, tuple(SPACES)))
        self.arguments: dict[str, Any] = dict(space=space, width=width, num_classes=num_classes)
        most = [["76"] * count for count in MOST_BLOCKS[space]]
        self.largest = SearchedNet(blocks=" / ".join(map(" ".join, most)), **self.arguments)
        self.transforms = nn.ModuleDict(
            {
                f"{s}_{j}": KernelTransform()
                for s, j, _ in numbered_blocks(self.largest)
                if s > 0  # stage 0 is not searched
            }
        )
        self.key_styles = SUPERNET_STYLES

    def build(self, blocks: str) -> SearchedNet:
        """Build the network `blocks`, such as `"33 54 / ..."`, with weights of its own.

        Raises:
            BadInput: The text describes no network of this supernet.
        """
        network = SearchedNet(blocks=blocks, **self.arguments)
        for s, most in enumerate(MOST_BLOCKS[self.arguments["space"]], start=1):
            stage: Any = network.stages[s]
            count = len(stage.blocks)
            if count > most:
                raise BadInput(f"blocks={blocks!r}: stage {s} has {count} blocks, at most {most}")
        return network

    def weights(self, network: SearchedNet) -> dict[str, Tensor]:
        """Return the shared weights by the names of a network; gradients flow through them."""
        shared: dict[str, Any] = dict(self.largest.named_parameters())
        shared |= dict(self.largest.named_buffers())
        taken = {}
        for key, like in network.state_dict().items():
            tensor = shared[key]
            if tensor.ndim:
                tensor = tensor[: len(like)]
            if key.endswith("depthwise.conv.weight") and not key.startswith("stages.0."):
                _, s, _, j, *_ = key.split(".")
                tensor = self.transforms[f"{s}_{j}"](tensor, like.shape[-1])
            elif tensor.ndim > 1:
                tensor = tensor[:, : like.shape[1]]
            taken[key] = tensor
        return taken

    def forward(self, x: Tensor, blocks: str) -> Tensor:
        """Compute the logits of the network `blocks` for images B 3 H W."""
        with torch.device("meta"):
            network = self.build(blocks)
        network.train(self.training)
        return torch.func.functional_call(network, self.weights(network), (x,))


def extract(supernet: Supernet, blocks: str) -> SearchedNet:
    """Cut a network out of a supernet: an ordinary backbone with weights of its own.

    Its batch norm statistics are those of the supernet and belong to another network: call
    `zoo.recalibrate(network, batches, "once_for_all")`.

    Args:
        supernet: The supernet; it is not changed.
        blocks: Kernel size and expansion of the blocks of each stage, such as `"33 54 / ..."`.

    Raises:
        BadInput: The text describes no network of this supernet.
    """
    first = next(supernet.parameters())
    network = supernet.build(blocks).to(first.device, first.dtype).train(supernet.training)
    with torch.no_grad():
        network.load_state_dict(supernet.weights(network))
    return network


def blocks_of(
    kernel_sizes: Sequence[int], expansions: Sequence[int], depths: Sequence[int], space: str
) -> str:
    """Return a network as text from the lists of the public code.

    Args:
        kernel_sizes: Kernel size of each block of the largest network.
        expansions: Expansion of each block of the largest network.
        depths: Number of blocks of each stage.
        space: `"mobilenetv3"` or `"proxyless"`.
    """
    stages, first = [], 0
    for depth, most in zip(depths, MOST_BLOCKS[space], strict=True):
        taken = range(first, first + min(depth, most))
        stages.append(" ".join(f"{kernel_sizes[i]}{expansions[i]}" for i in taken))
        first += most
    return " / ".join(stages)


MOST_BLOCKS = {"mobilenetv3": (4, 4, 4, 4, 4), "proxyless": (4, 4, 4, 4, 4, 1)}


def _supernet_rows(model: Supernet) -> list[Any]:
    """Return the rows; searched layers have one more level of names than others."""
    rows: list[Any] = []
    for number, (s, j, _) in enumerate(numbered_blocks(model.largest)):
        old = rf"blocks\.{number}\.(?:mobile_inverted_)?conv\.depth_conv\.conv\."
        for public, own in (("7to5", "to5"), ("5to3", "to3")):
            rows.append((rf"{old}{public}_matrix$", f"transforms.{s}_{j}.{own}"))
    return rows + [(pattern, f"largest.{new}") for pattern, new in _rows(model.largest)]


SUPERNET_STYLES = tuple(
    KeyStyle(
        "mit-han-lab/once-for-all supernet",
        f"blocks.1.{infix}.depth_conv.conv.conv.weight",
        rows=_supernet_rows,
        inside=((r"\.bn\.bn\.", ".norm."), (r"\.bn\.", ".norm."), (r"\.conv\.conv\.", ".conv.")),
    )
    for infix in ("conv", "mobile_inverted_conv")
)

# Space and width, and the blocks.
FRAMES = {
    "M1.0": dict(space="mobilenetv3", width=1.0),
    "M1.2": dict(space="mobilenetv3", width=1.2),
    "P1.3": dict(space="proxyless", width=1.3),
}
# fmt: off
TABLE = {
    "ofa_1080ti_12":  ("P1.3", "33 33 / 36 54 54 / 56 53 73 / 34 73 36 34 / 76 54 73 53 / 36"),
    "ofa_1080ti_15":  ("P1.3", "34 34 / 36 36 34 / 33 53 / 33 54 33 36 / 36 76 74 36 / 53"),
    "ofa_1080ti_22":  ("P1.3", "33 33 / 53 36 / 34 54 36 / 34 36 74 / 36 54 54 / 34"),
    "ofa_1080ti_27":  ("P1.3", "33 33 / 36 56 34 34 / 56 33 54 / 56 34 54 / 36 56 73 36 / 76"),
    "ofa_lg_11":      ("M1.0", "33 33 / 53 34 74 / 54 33 / 54 34 53 / 56 76 54"),
    "ofa_lg_16":      ("M1.0", "33 33 / 74 53 33 / 56 54 53 / 34 74 53 / 56 76 36 34"),
    "ofa_lg_24":      ("M1.0", "33 33 / 74 53 33 / 56 54 53 / 34 74 53 / 56 76 36 34"),
    "ofa_lg_8":       ("M1.0", "33 33 / 54 53 / 53 33 33 / 36 74 / 36 74"),
    "ofa_cpu_10":     ("P1.3", "54 33 / 33 33 / 73 33 73 / 53 54 / 53 34 / 34"),
    "ofa_cpu_11":     ("P1.3", "54 53 / 33 73 / 54 34 73 / 54 74 / 36 34 / 54"),
    "ofa_cpu_15":     ("P1.3", "33 33 / 34 36 / 76 34 / 54 36 36 / 56 33 / 76"),
    "ofa_cpu_17":     ("P1.3", "33 34 / 53 34 / 36 73 33 / 53 54 36 / 36 54 33 / 34"),
    "ofa_389M":       ("M1.2", "33 33 / 53 56 33 / 54 54 33 / 56 54 34 34 / 36 36 76 33"),
    "ofa_482M":       ("M1.2", "53 33 33 / 54 34 54 33 / 54 56 33 33 / 56 76 36 54 / 76 36 36 33"),
    "ofa_595M":       ("M1.2", "33 54 33 / 54 54 36 53 / 76 56 33 54 / 36 56 76 34 / 36 36 56 33"),
    "ofa_note10_11":  ("M1.0", "33 33 / 54 34 / 54 34 / 34 33 33 / 34 54 54"),
    "ofa_note10_16":  ("M1.0", "33 33 / 53 54 34 33 / 54 54 33 / 54 54 33 / 36 74 54 33"),
    "ofa_note10_22":  ("M1.0", "33 33 / 53 34 34 / 74 54 54 / 54 36 34 / 36 36 36 33"),
    "ofa_note10_30":  ("M1.2", "33 33 / 54 33 34 / 54 54 33 / 36 34 34 / 36 36 34 33"),
    "ofa_note10_41":  ("M1.2", "33 34 / 74 34 36 / 76 36 33 34 / 36 56 36 34 / 36 36 36 33"),
    "ofa_note10_50":  ("M1.2", "53 36 36 / 54 36 36 53 / 76 76 34 54 / 76 56 36 36 / 36 36 36"),
    "ofa_note10_64":  ("M1.2", "33 36 33 / 54 36 33 53 / 56 56 34 74 / 56 36 36 34 / 36 36 56 33"),
    "ofa_note10_08":  ("M1.0", "33 33 / 33 34 / 34 33 33 / 33 34 / 34 54"),
    "ofa_note8_22":   ("M1.0", "33 33 / 53 53 / 74 33 / 53 34 / 36 76"),
    "ofa_note8_31":   ("M1.0", "53 33 / 54 53 / 34 34 54 / 34 53 74 / 36 33 53 53"),
    "ofa_note8_49":   ("M1.0", "53 34 / 54 34 74 / 74 73 34 / 34 36 34 / 36 56 36 54"),
    "ofa_note8_65":   ("M1.0", "73 33 / 34 54 33 / 76 36 34 / 56 36 34 / 56 54 54 33"),
    "ofa_pixel1_132": ("M1.2", "53 36 / 54 56 36 53 / 76 56 36 54 / 56 56 56 54 / 36 36 56 33"),
    "ofa_pixel1_143": ("M1.2", "53 36 33 / 56 56 36 53 / 76 56 36 34 / 56 36 56 34 / 36 36 56 33"),
    "ofa_pixel1_20":  ("M1.0", "33 33 / 53 53 / 74 33 / 53 34 / 36 76"),
    "ofa_pixel1_28":  ("M1.0", "33 34 / 73 36 34 / 73 36 / 36 54 / 36 34 33 36"),
    "ofa_pixel1_40":  ("M1.0", "53 34 / 54 34 74 / 74 73 34 / 34 36 34 / 36 56 36 54"),
    "ofa_pixel1_58":  ("M1.0", "33 33 / 74 53 33 / 56 54 53 / 34 74 53 / 56 76 36 34"),
    "ofa_pixel1_79":  ("M1.2", "33 33 / 53 34 / 74 54 33 / 56 34 34 33 / 36 36 36 33"),
    "ofa_pixel2_25":  ("M1.0", "33 33 / 56 54 / 74 33 / 74 73 34 / 56 34"),
    "ofa_pixel2_35":  ("M1.0", "33 33 / 33 34 36 / 74 74 / 54 33 33 73 / 74 76 73 53"),
    "ofa_pixel2_50":  ("M1.0", "33 34 / 33 33 / 33 56 / 56 74 / 36 53 74 53"),
    "ofa_pixel2_62":  ("M1.0", "33 33 / 74 53 33 / 56 54 53 / 34 74 53 / 56 76 36 34"),
    "ofa_s7edge_29":  ("M1.0", "33 33 / 53 34 / 54 34 / 54 54 / 36 53"),
    "ofa_s7edge_41":  ("M1.0", "33 33 / 53 34 / 74 54 / 34 34 33 / 36 54 33 33"),
    "ofa_s7edge_58":  ("M1.0", "33 33 / 53 34 / 74 53 34 33 / 34 34 33 / 36 54 54"),
    "ofa_s7edge_88":  ("M1.0", "53 34 / 56 36 34 / 74 56 53 / 56 56 34 54 / 36 76 36 34"),
    "ofa_tx2_35":     ("P1.3", "34 33 / 36 76 / 56 53 / 53 34 / 56 34 / 54"),
    "ofa_tx2_47":     ("P1.3", "33 34 / 53 34 / 36 73 33 / 53 54 36 / 36 54 33 / 34"),
    "ofa_tx2_80":     ("P1.3", "33 33 / 53 36 / 34 54 36 / 34 36 74 / 36 54 54 / 34"),
    "ofa_tx2_96":     ("P1.3", "33 34 36 / 73 54 / 34 54 54 53 / 54 73 73 36 / 36 36 56 34 / 53"),
    "ofa_v100_11":    ("P1.3", "33 33 / 56 53 / 73 33 74 / 74 54 33 74 / 36 56 54 36 / 34"),
    "ofa_v100_05":    ("P1.3", "33 33 / 53 36 / 34 54 36 / 34 36 74 / 36 54 54 / 34"),
    "ofa_v100_06":    ("P1.3", "33 34 / 53 34 / 36 73 33 / 53 54 36 / 36 54 33 / 34"),
    "ofa_v100_09":    ("P1.3", "33 33 / 53 36 / 34 54 36 / 34 36 74 / 36 54 54 / 34"),
    "eeea_c1": ("M1.0", "33 53 / 73 53 / 73 74 / 54 34 / 76 34 36 73"),
    "eeea_c2": ("M1.0", "33 54 33 / 74 33 73 / 56 76 53 33 / 76 54 33 33 / 56 36 56 73"),
}
# fmt: on
VARIANTS = {name: FRAMES[frame] | dict(blocks=blocks) for name, (frame, blocks) in TABLE.items()}

SearchedNet.register_family(VARIANTS, KEY_STYLES)
