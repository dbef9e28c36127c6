"""What differs between tasks: how a model is judged, what is written and drawn of that.

The loop, the optimizer, the schedule, averaging, resuming and evaluating are the same for all.
"""

import abc
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor

from zoo.errors import BadInput
from zoo.settings import TrainConfig

Forward = Callable[[Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]

_HOME = {
    "classification": "zoo.training.classification",
    "segmentation": "zoo.training.segmentation",
    "super-resolution": "zoo.training.super_resolution",
}


class Result(abc.ABC):
    """How good a model is on a set.

    Attributes:
        images: How many images it was judged on.
    """

    images: int

    @property
    @abc.abstractmethod
    def score(self) -> float:
        """What the best epoch is chosen by: higher is better, above -1."""

    @abc.abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the scalars under the names that logs use."""

    @abc.abstractmethod
    def words(self) -> str:
        """Return the result as part of a line of the log."""


class Task(abc.ABC):
    """One task; it has no state.

    Attributes:
        name: In the words of the registry.
        loss: What `train.loss=null` means.
    """

    name: ClassVar[str]
    loss: ClassVar[str]

    @abc.abstractmethod
    def best(self, score: float) -> str:
        """Return the score with its name, for the last line of a run."""

    def target(self, data: Any) -> str:
        """Say what the model is to give, for the first lines of a run."""
        return f"{data.num_classes} classes"

    @abc.abstractmethod
    def validate(
        self,
        model: Forward,
        batches: Batches,
        data: Any,
        device: torch.device,
        *,
        limit: int | None = None,
        after_batch: Callable[[], None] = lambda: None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Result:
        """Judge `model`; with several processes the result is that of all of them.

        Args:
            model: Called with images, N C H W; in eval mode.
            batches: Images and targets; every process its own share.
            data: The datamodule that gives them.
            device: Where the model is.
            limit: Stop after so many batches.
            after_batch: Called after each batch; may raise to break off.
            memory_format: Layout of the images.
        """

    @abc.abstractmethod
    def report(self, found: Any, data: Any) -> dict[str, Any]:
        """Return everything that is known of an evaluation as plain values."""

    @abc.abstractmethod
    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        """Print a report."""

    @abc.abstractmethod
    def write(self, folder: Path, report: dict[str, Any]) -> None:
        """Write a report to files of `folder`, which is there."""

    def draw(self, folder: Path, model: Forward, data: Any, device: torch.device) -> None:
        """Draw what the model makes of some validation images to `folder`; or nothing."""
        return

    def check(self, train: TrainConfig) -> None:
        """Raise `BadInput` for a key of `train` that this task has no use for."""
        return


class DenseTask(Task):
    """A task whose targets are maps."""

    def check(self, train: TrainConfig) -> None:
        """Raise `BadInput` for what turns or teaches the classes of whole images."""
        for key in ("mixup", "cutmix"):
            if getattr(train, key):
                raise BadInput(
                    f"train.{key}={getattr(train, key):g} has no meaning for {self.name}"
                )
        if train.distill != "none":
            raise BadInput(f"train.distill={train.distill} has no meaning for {self.name}")


def get_task(name: str) -> Task:
    """Return the task of that name, in the words of the registry."""
    return importlib.import_module(_HOME[name]).TASK


def task_of_model(name: str) -> str:
    """Return what a model is made for; timm's models classify."""
    from zoo import registry

    return "classification" if registry.is_timm(name) else registry.get_spec(name).task


def check_task(name: str, data: Any) -> None:
    """Raise `BadInput` unless the model `name` is made for what `data` is for."""
    task = task_of_model(name)
    if task != data.task:
        raise BadInput(
            f"model {name} is made for {task}, data.name={data.config.name} for {data.task};"
            f" python -m zoo list --task {data.task} shows the models for that"
        )


def examples(data: Any, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` validation images, evenly spaced, and their targets; all if there are less."""
    images = data.val_dataloader().dataset
    step = max(1, len(images) / count)
    return images.load([(0, int(i * step)) for i in range(min(count, len(images)))])


@torch.inference_mode()
def outputs_of(model: Forward, images: Tensor, device: torch.device) -> Tensor:
    """Return what `model` makes of `images`, float32 on the CPU."""
    return model(images.to(device)).float().cpu()


def denormalized(data: Any, images: Tensor) -> Tensor:
    """Return normalised images as values 0..1, N C H W."""
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (data.mean, data.std)
    )
    return images * std + mean
