"""A network that every format takes, and the size that it is exported for."""

import torch
from torch import nn

SIZE = (1, 3, 16, 20)


class Net(nn.Module):
    """A convolution, a batch norm with random statistics, a classifier."""

    num_classes, in_chans = 5, 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)
        nn.init.uniform_(self.body[1].running_mean, -0.5, 0.5)
        nn.init.uniform_(self.body[1].running_var, 0.5, 2.0)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
