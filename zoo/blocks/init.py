"""Initialisation of layers."""

import math

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as in transformers (normal, std 0.02); for `Module.apply`.

    Source: the public code of ViT (arXiv 2010.11929) in timm; biases start at 0. Other modules are
    left as they are.

    Args:
        module: Any module.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv(module: nn.Module) -> None:
    """Initialise a 2-D convolution as in torchvision's MobileNetV2; for `Module.apply`.

    Args:
        module: Any module.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
