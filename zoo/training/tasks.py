"""The interface of a task, and what all tasks share.

A task defines its metrics, reports and pictures. The loop, the optimizer, the schedule, weight
averaging, resuming and evaluation are the same for all tasks.
"""

import abc
import importlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor, nn

from zoo.errors import BadInput, ZooError
from zoo.settings import TrainConfig

Forward = Callable[[Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]

_MODULES = {
    "classification": "zoo.training.classification",
    "segmentation": "zoo.training.segmentation",
    "super-resolution": "zoo.training.super_resolution",
    "restoration": "zoo.training.restoration",
    "detection": "zoo.training.detection",
    "retrieval": "zoo.training.retrieval",
    "multi-label": "zoo.training.multilabel",
}


class NotFinite(ZooError):
    """The outputs of a model are NaN or infinite, so there is nothing to measure."""


class Result(abc.ABC):
    """Metrics of a model on a data set.

    Attributes:
        images: Number of images.
    """

    images: int

    @property
    @abc.abstractmethod
    def score(self) -> float:
        """The metric that selects the best epoch: higher is better, and it is above -1."""

    @abc.abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the metrics with their names in the logs."""

    @abc.abstractmethod
    def summary(self) -> str:
        """Return the metrics as text for a line of the log."""


class Meter(nn.Module, abc.ABC):
    """Accumulates the metrics of a task over batches and processes.

    The metrics are submodules, so that `to` moves them to the device.
    """

    @abc.abstractmethod
    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of normalised images N C H W, float32 outputs and targets."""

    @abc.abstractmethod
    def compute(self) -> Result:
        """Return the metrics of all batches of all processes."""


class Task(abc.ABC):
    """One task, such as segmentation. It has no state.

    Attributes:
        name: The name in the registry.
        loss: The loss that `train.loss=null` selects.
        selectable: The values of `train.best`; each is a metric `val/<name>`.
    """

    name: ClassVar[str]
    loss: ClassVar[str]
    selectable: ClassVar[tuple[str, ...]] = ("loss",)

    @abc.abstractmethod
    def format_score(self, score: float) -> str:
        """Return the score with its name, for the last line of a run."""

    def selection_score(self, result: Any, best: str | None) -> float:
        """Return the number that selects the best epoch: higher is better.

        Args:
            result: A `Result` of the task.
            best: The value of `train.best`; None for the score of the task.
        """
        if best is None:
            return result.score
        value = result.metrics()[f"val/{best}"]
        return -value if best == "loss" else value

    def format_selection(self, score: float, best: str | None) -> str:
        """Return a `selection_score` with its name."""
        if best is None:
            return self.format_score(score)
        return f"loss {-score:.4f}" if best == "loss" else f"{best} {score:.2%}"

    def describe_output(self, data: Any) -> str:
        """Return what the model predicts, for the first lines of a run."""
        return f"{data.num_classes} classes"

    @abc.abstractmethod
    def meter(self, data: Any) -> Meter:
        """Return a new meter for a data module after `setup`."""

    @torch.inference_mode()
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
    ) -> Any:
        """Evaluate `model`; with several processes the result covers the batches of all of them.

        Args:
            model: Maps images N C H W to outputs; in evaluation mode.
            batches: Images and targets; each process has its own share.
            data: The data module of the batches.
            device: The device of the model.
            limit: The largest number of batches; None for all.
            after_batch: Called after each batch; may raise to stop early.
            memory_format: Memory format of the images.

        Returns:
            The `Result` of the task.

        Raises:
            NotFinite: An output is NaN or infinite.
        """
        meter = self.meter(data).to(device)
        affected = torch.zeros(2, dtype=torch.int64, device=device)  # images, all images
        for images, targets in itertools.islice(batches, limit):
            images = images.to(device, non_blocking=True, memory_format=memory_format)
            targets = targets.to(device, non_blocking=True)
            outputs = model(images).float()
            affected[0] += (~outputs.flatten(1).isfinite().all(dim=1)).sum()
            affected[1] += len(images)
            meter.update(images, outputs, targets)
            after_batch()
        damaged, total = affected.tolist()
        if damaged:
            raise NotFinite(
                f"the outputs for {damaged} of {total} images are NaN or infinite, so no metric is"
                " valid"
            )
        return meter.compute()

    @abc.abstractmethod
    def report(self, result: Any, data: Any) -> dict[str, Any]:
        """Return the complete result as plain values, for `report.json`."""

    @abc.abstractmethod
    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        """Print a report."""

    @abc.abstractmethod
    def write(self, folder: Path, report: dict[str, Any]) -> None:
        """Write the tables and figures of a report to an existing folder."""

    def draw(
        self, folder: Path, model: Forward, data: Any, device: torch.device, title: str = ""
    ) -> None:
        """Draw predictions for some validation images under a title, if the task has pictures."""
        return

    def check_settings(self, train: TrainConfig) -> None:
        """Raise `BadInput` for a setting that this task does not support."""
        return


class DenseTask(Task):
    """A task whose targets are not one class of each whole image."""

    def check_settings(self, train: TrainConfig) -> None:
        """Raise `BadInput` for settings that apply only to one class of a whole image."""
        for key in ("mixup", "cutmix"):
            if getattr(train, key):
                raise BadInput(
                    f"train.{key}={getattr(train, key):g} is not supported for {self.name}; leave"
                    " it out"
                )
        if train.distill != "none":
            raise BadInput(
                f"train.distill={train.distill} is not supported for {self.name}; leave it out"
            )


def get_task(name: str) -> Task:
    """Return the task with that name in the registry."""
    return importlib.import_module(_MODULES[name]).TASK


def task_of_model(name: str) -> str:
    """Return the task of a model; models of timm are classifiers."""
    from zoo import registry

    return "classification" if registry.is_timm(name) else registry.get_spec(name).task


def check_task(name: str, data: Any) -> None:
    """Raise `BadInput` unless the model `name` and `data` have the same task."""
    task = task_of_model(name)
    if task == "classification" and data.task == "multi-label":
        return
    if task != data.task:
        raise BadInput(
            f"model {name} is for {task}, but data.name={data.config.name} is for {data.task};"
            f" python -m zoo list --task {data.task} lists the models for that task"
        )


def report_title(report: dict[str, Any]) -> str:
    """Return the title of a picture of a report: the model, the data and the number of images."""
    name = report.get("model") or Path(str(report.get("artefact", "model"))).name
    form = f", {report['precision']}" if report.get("precision", "float32") != "float32" else ""
    return f"{name}{form} on {report['data']}, {report['images']} images"


def sample_validation(data: Any, count: int) -> tuple[Tensor, Tensor]:
    """Return up to `count` evenly spaced validation images with their targets."""
    images = data.val_dataloader().dataset
    step = max(1, len(images) / count)
    return images.load([(0, int(i * step)) for i in range(min(count, len(images)))])


@torch.inference_mode()
def predict(model: Forward, images: Tensor, device: torch.device) -> Tensor:
    """Return the outputs of `model` on the CPU, as float32."""
    return model(images.to(device)).float().cpu()


def denormalized(data: Any, images: Tensor) -> Tensor:
    """Return normalised images N C H W as values in 0..1, in the order red, green, blue."""
    mean, std = (
        torch.tensor(values, device=images.device)[:, None, None]
        for values in (data.mean, data.std)
    )
    images = images * std + mean
    return images.flip(1) if data.config.channel_order == "BGR" else images
