"""Latent tokens that look at an image through boxes (SparseFormer, arXiv 2304.03768, section 3).

Boxes are x0, y0, x1, y1 in units of the image, 0 to 1 inside of it. Geometry is computed in float32
at least, also under autocast.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.blocks.folding import Absorbing
from zoo.blocks.precision import outside_autocast

FREQUENCIES = 128.0  # largest factor of the angles of `encode_boxes`


# B batch, T tokens, P points, C channels of the image's feature map, D channels of a token
def adjusted(boxes_BT4: Tensor, change_BT4: Tensor) -> Tensor:
    """Move and scale boxes: the first two values move by shares of the size, the others scale."""
    low, high = boxes_BT4[..., :2], boxes_BT4[..., 2:]
    size = (high - low).abs()
    centre = (low + high) / 2 + change_BT4[..., :2] * size
    half = size * change_BT4[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def sampled(image: Tensor, boxes_BT4: Tensor, offsets_BTP2: Tensor, border: bool) -> Tensor:
    """Sample a feature map at points of boxes, bilinearly.

    Args:
        image: B C H W.
        boxes_BT4: A box for each token.
        offsets_BTP2: Points relative to the box; they are normalised over P.
        border: Take values at the border outside of the image; otherwise 0.

    Returns:
        B T P C.
    """
    mean = offsets_BTP2.mean(2, keepdim=True)
    deviation = offsets_BTP2.std(2, keepdim=True)
    offsets_BTP2 = (offsets_BTP2 - mean) / (3 * (deviation + 1e-5))
    low, high = boxes_BT4[..., :2].unsqueeze(2), boxes_BT4[..., 2:].unsqueeze(2)
    points_BTP2 = (low + high) / 2 + offsets_BTP2 * (high - low)
    values = F.grid_sample(
        image,
        2 * points_BTP2 - 1,
        mode="bilinear",
        padding_mode="border" if border else "zeros",
        align_corners=False,
    )
    return values.permute(0, 2, 3, 1)


def encode_boxes(boxes_BT4: Tensor, channels: int) -> Tensor:
    """Return sines and cosines of the numbers of boxes, B T channels; without gradient."""
    count = channels // 4
    steps = torch.arange(count, device=boxes_BT4.device, dtype=boxes_BT4.dtype)
    factors = torch.exp(steps * (math.log(FREQUENCIES) / (count - 1)))
    angles = math.pi * boxes_BT4.detach().unsqueeze(-1) * factors  # B T 4 count
    return torch.cat([angles[..., ::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(2)


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def adjust_boxes(boxes_BT4: Tensor, change_BT4: Tensor) -> Tensor:
    """Compute `adjusted` outside of autocast."""
    if torch.jit.is_scripting():
        return adjusted(boxes_BT4, change_BT4)
    else:
        return outside_autocast(adjusted, _single(boxes_BT4), _single(change_BT4))


def sample_image(image: Tensor, boxes_BT4: Tensor, offsets_BTP2: Tensor, border: bool) -> Tensor:
    """Compute `sampled` outside of autocast."""
    if torch.jit.is_scripting():
        return sampled(image, boxes_BT4, offsets_BTP2, border)
    else:
        wide = [_single(x) for x in (image, boxes_BT4, offsets_BTP2)]
        return outside_autocast(sampled, *wide, border)


torch.fx.wrap("adjust_boxes")
torch.fx.wrap("sample_image")
torch.fx.wrap("encode_boxes")


class BoxHead(Absorbing):
    """A norm and a linear layer whose output starts at 0; optionally with a hidden layer.

    Args:
        channels: Width of the tokens.
        out: Width of the output.
        hidden: Whether there is a linear layer and a GELU before.
        eps: Epsilon of the norm.
    """

    branch_ends = ("norm",)

    def __init__(self, channels: int, out: int, *, hidden: bool = False, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.hidden: nn.Module = nn.Linear(channels, channels) if hidden else nn.Identity()
        self.act: nn.Module = nn.GELU() if hidden else nn.Identity()
        self.absorbs_before = {"hidden" if hidden else "linear": "norm"}
        self.linear = nn.Linear(channels, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.hidden(self.norm(x))))  # B T out

    def init(self) -> None:
        """Start with small norms and an output of 0, as in the public code."""
        nn.init.constant_(self.norm.weight, self.norm.weight.shape[0] ** -0.5)
        nn.init.zeros_(self.linear.weight)


class AdaptiveMixing(Absorbing):
    """Mix the channels, then the points of samples by matrices computed from the token (fig. 4).

    Args:
        channels: Width of the tokens.
        image_channels: Channels of the samples.
        points: Number of samples of a token.
        hidden: Width inside of the layers that compute the matrices.
        biased: Whether there are biases, and an activation between the two mixings.
    """

    absorbs_before = {"reduce": "norm"}
    branch_ends = ("norm", "norm")  # twice, because two of its outputs are multiplied

    def __init__(
        self, channels: int, image_channels: int, points: int, *, hidden: int, biased: bool
    ):
        super().__init__()
        self.image_channels, self.points, self.out = image_channels, points, max(points, 32)
        self.sizes = [image_channels**2, points * self.out]
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, sum(self.sizes))
        self.biased = biased
        if biased:
            self.channel_bias = nn.Parameter(torch.zeros(image_channels))
            self.point_bias = nn.Parameter(torch.zeros(self.out))
        self.act = nn.GELU()
        self.proj = nn.Linear(self.out * image_channels, channels)

    def forward(self, samples_BTPC: Tensor, x: Tensor) -> Tensor:
        matrices = self.expand(self.reduce(self.norm(x))).split(self.sizes, dim=-1)
        by_channel = matrices[0].unflatten(-1, (self.image_channels, self.image_channels))
        by_point = matrices[1].unflatten(-1, (self.out, self.points))
        y = samples_BTPC.to(by_channel.dtype) @ by_channel
        if self.biased:
            y = self.act(y + self.channel_bias)
            y = self.act(by_point @ y + self.point_bias.unsqueeze(1))
        else:
            y = self.act(by_point @ y)
        return self.proj(y.flatten(2))  # B T D

    def init(self) -> None:
        """Start with matrices that do not depend on the token, as in the public code."""
        nn.init.constant_(self.norm.weight, self.norm.weight.shape[0] ** -0.5)
        nn.init.zeros_(self.expand.weight)
        first = self.expand.bias.data[: self.sizes[0]]
        nn.init.xavier_uniform_(first.view(self.image_channels, self.image_channels))
        nn.init.xavier_uniform_(self.expand.bias.data[self.sizes[0] :].view(self.points, self.out))


class Sampling(nn.Module):
    """Sample the image at learnt points of each box, and mix the samples into the token.

    Args:
        channels: Width of the tokens.
        image_channels: Channels of the feature map.
        points: Number of points of a box.
        hidden: As for `AdaptiveMixing`.
        biased: As for `AdaptiveMixing`.
        border: As for `sampled`.
        drop_path: Probability of dropping the result in training.
        eps: Epsilon of the norm before the offsets.
    """

    no_decay = ("start",)

    def __init__(
        self,
        channels: int,
        image_channels: int,
        points: int,
        *,
        hidden: int,
        biased: bool,
        border: bool,
        drop_path: float,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.points, self.border = points, border
        self.offsets = BoxHead(channels, 2 * points, eps=eps)
        self.start = nn.Parameter(torch.zeros(2 * points))
        self.mixing = AdaptiveMixing(channels, image_channels, points, hidden=hidden, biased=biased)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, boxes_BT4: Tensor, image: Tensor) -> Tensor:
        offsets = (self.offsets(x) + self.start).unflatten(-1, (self.points, 2))
        samples = sample_image(image, boxes_BT4, offsets, self.border)
        return x + self.drop_path(self.mixing(samples, x))  # B T D

    def init(self) -> None:
        """Start with points on a regular grid, row by row, in the middle of the boxes."""
        self.offsets.init()
        self.mixing.init()
        side = math.isqrt(self.points)
        ticks = (torch.arange(side, dtype=torch.float32) + 0.5) / side - 0.5
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        self.start.data.copy_(torch.stack([x, y], dim=-1).flatten())


class BoxEncoding(Absorbing):
    """Add an encoding of the boxes to the tokens.

    Args:
        channels: Width of the tokens, a multiple of 8.
    """

    absorbs_before = {"linear": "norm"}

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor, boxes_BT4: Tensor) -> Tensor:
        encoded = encode_boxes(boxes_BT4, self.channels).to(x.dtype)
        return x + self.linear(self.norm(encoded))  # B T D
