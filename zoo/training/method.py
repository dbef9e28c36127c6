"""Hooks for training methods that change the model, such as quantisation-aware training."""

import torch
from torch import nn

from zoo.data.datamodule import ImageData


class TrainingMethod:
    """Ordinary training: no hook changes the model.

    Subclasses, such as the one in `zoo.training.qat`, override some of the hooks. They are
    called in the order in which they are defined.
    """

    def check_processes(self, count: int) -> None:
        """Raise `BadInput` if the method does not support `count` processes."""

    def transform(self, model: nn.Module) -> nn.Module:
        """Return the model to train. The loss, freezing and the device come later."""
        return model

    def prepare(
        self, model: nn.Module, data: ImageData, *, resumed: bool, layout: torch.memory_format
    ) -> nn.Module:
        """Return the model to train, now on its device. The optimizer is built afterwards.

        Args:
            model: The result of `transform`.
            data: The data module, after `setup`.
            resumed: Whether a checkpoint will be loaded.
            layout: Memory format of the images.
        """
        return model

    def checkpoint_entries(self, model: nn.Module) -> dict[str, object]:
        """Return the checkpoint entries that are required to rebuild the prepared `model`."""
        return {}

    def plan(self, updates: int) -> None:
        """Receive the number of updates of the whole run, before training starts."""

    def after_update(self, model: nn.Module, update: int) -> None:
        """Act after update number `update`, and at the start of every epoch."""
