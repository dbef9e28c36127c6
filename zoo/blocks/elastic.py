"""Parts of Once-for-All: kernels that shrink, and the text that describes a network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import BadInput


def parse_blocks(blocks: str, stages: int) -> list[list[tuple[int, int]]]:
    """Return kernel size and expansion of each block, stage by stage.

    Args:
        blocks: Such as `"33 54 / 76"`: two blocks of kernel size 3 and 5, and one of 7.
        stages: Number of stages that must be described.

    Raises:
        BadInput: The text describes no such network.
    """
    found = [part.split() for part in str(blocks).split("/")]
    digits = all(
        len(block) == 2 and block[0] in "357" and block[1] in "123456789"
        for stage in found
        for block in stage
    )
    if len(found) != stages or not all(found) or not digits:
        raise BadInput(
            f"blocks={blocks!r}: give {stages} stages separated by '/', each with blocks such as "
            "'54' (kernel size 3, 5 or 7, then the expansion)"
        )
    return [[(int(block[0]), int(block[1])) for block in stage] for stage in found]


class KernelTransform(nn.Module):
    """The matrices that make a smaller kernel of the middle of a larger one.

    From arXiv 1908.09791, section 3.3. They are shared by all channels of a layer, and are the
    identity before training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.to5 = nn.Parameter(torch.eye(25))
        self.to3 = nn.Parameter(torch.eye(9))

    def forward(self, kernel: Tensor, side: int) -> Tensor:
        """Map kernels C 1 7 7 to C 1 side side, where `side` is 3, 5 or 7."""
        if side == 7:
            return kernel
        five = F.linear(kernel[:, :, 1:6, 1:6].flatten(2), self.to5)
        if side == 5:
            return five.view(-1, 1, 5, 5)
        middle = five.view(-1, 1, 5, 5)[:, :, 1:4, 1:4]
        return F.linear(middle.flatten(2), self.to3).view(-1, 1, 3, 3)
