"""Rounding of channel counts."""


def round_channels(channels: float, divisor: int = 8, limit: float = 0.9) -> int:
    """Round to a multiple of `divisor`, never losing more than a tenth (MobileNetV2's rule).

    Args:
        channels: The scaled count, not yet whole.
        divisor: What the result is a multiple of, and its least value.
        limit: The least share of `channels` that may remain.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * channels else rounded
