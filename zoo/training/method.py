"""Hooks for training methods that change the model, such as quantisation-aware training.

`after_update` is the hook of methods that change weights while they are trained. It sees the
gradients of the update, and the averaged weights (`train.ema_decay`) are averages of what it
leaves. Its state, if it has any, is part of every checkpoint.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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

    def check_resumed(self, content: Mapping[str, Any], path: Path) -> None:
        """Raise `BadWeights` unless the checkpoint `path` belongs to what the model was built from.

        Args:
            content: The checkpoint.
            path: Its file, for messages.
        """

    def split_state(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the state that a checkpoint keeps of the model, or of its averaged weights.

        Returns:
            What is loaded for evaluation, and what only resuming needs beside it.
        """
        return model.state_dict(), {}

    def joined_state(
        self, model: nn.Module, state: dict[str, Tensor], rest: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the whole state of `model` from the two parts that `split_state` returned."""
        return state

    def plan(self, updates: int) -> None:
        """Receive the number of updates of the whole run, before training starts."""

    def start_epoch(self, model: nn.Module, update: int) -> None:
        """Act on the model in training mode, at the start of an epoch or when a run resumes.

        Args:
            model: The model that is trained.
            update: Number of updates so far.
        """

    def branches(self, model: nn.Module, images: Tensor, outputs: Any) -> Iterable[Tensor]:
        """Yield further losses of a batch, whose gradients are added to that of its own loss.

        Each is differentiated before the next is asked for.

        Args:
            model: The model that is trained.
            images: The batch, N C H W, as the model saw it.
            outputs: What the model returned.
        """
        return ()

    def after_update(self, model: nn.Module, update: int) -> None:
        """Act once after every step of the optimizer, before its gradients are cleared.

        Args:
            model: The model that is trained.
            update: Number of this update, counted from 1.
        """

    def after_averaging(self, averaged: nn.Module, update: int) -> None:
        """Act on the averaged weights, after `model` was averaged into them.

        Args:
            averaged: The model with the averaged weights.
            update: Number of this update, counted from 1.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: tensors, numbers, text, lists and tables."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; `state` has the same keys."""
