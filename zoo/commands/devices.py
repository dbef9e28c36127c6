"""The device that a command runs on."""

import torch

from zoo.errors import BadInput, first_line


def find_device(name: str) -> torch.device:
    """Return a device by name; `auto` is the first GPU, or the CPU.

    Raises:
        BadInput: The machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # a meta tensor has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device={name} is not available: {first_line(error)}") from error
    return device
