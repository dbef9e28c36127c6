"""Hooks through which a training method changes what is trained."""

import torch
from torch import nn

from zoo.data.datamodule import ImageData


class TrainingMethod:
    """Ordinary training: every hook leaves the model as it is.

    Subclasses change the model that is trained, such as `zoo.training.qat`. The hooks are called
    in the order in which they are defined.
    """

    def check_processes(self, count: int) -> None:
        """Raise `BadInput` if the method cannot run in `count` processes."""

    def transform(self, model: nn.Module) -> nn.Module:
        """Return the model to train; called before the loss, freezing and the device."""
        return model

    def prepare(
        self, model: nn.Module, data: ImageData, *, resumed: bool, layout: torch.memory_format
    ) -> nn.Module:
        """Return the model to train, now on its device; called before the optimiser is built.

        Args:
            model: Returned by `transform`.
            data: After `setup`.
            resumed: Whether a checkpoint is going to be loaded.
            layout: Memory format of the images.
        """
        return model

    def checkpoint_entries(self, model: nn.Module) -> dict[str, object]:
        """Return entries that every checkpoint needs to rebuild the prepared `model`."""
        return {}

    def plan(self, updates: int) -> None:
        """Take the number of updates of the whole run."""

    def after_update(self, model: nn.Module, update: int) -> None:
        """Act after update number `update`, or when training (re)starts there."""
