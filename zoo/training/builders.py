"""Builds what a run needs from its settings: data, model, loss, teacher; all checked."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn

from zoo.data.create import create_datamodule
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput, first_line
from zoo.factory import create_model
from zoo.inputs import published_input
from zoo.settings import DataConfig, ModelConfig, TrainConfig, TrainRun
from zoo.training.checkpoint import is_own
from zoo.training.losses import BiasLoss, Distillation, create_loss
from zoo.training.mixing import Mixing
from zoo.training.tasks import check_task, get_task
from zoo.weights import load_weights, read_checkpoint

Normalization = tuple[list[float], list[float]]


IMAGENET_STATISTICS: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": None,
    "crop_pct": None,
}


def build_data(run: TrainRun, fabric: Fabric, resumed: dict[str, Any] | None = None) -> ImageData:
    """Open the data of a training run.

    Args:
        run: The resolved settings.
        fabric: The processes of the run.
        resumed: The checkpoint of a run that continues.

    Raises:
        BadInput: The data cannot be opened, or `run.model` disagrees with it.
    """
    mean, std = normalization(run.model, resumed)
    data = create_datamodule(
        run.data, batch_size=run.train.batch_size, mean=mean, std=std, seed=run.train.seed
    )
    if data.config.download and fabric.world_size > 1:
        _download_once(data, fabric)
    data.setup("fit")
    check_against_data(run.model, data)
    return data


def _download_once(data: ImageData, fabric: Fabric) -> None:
    """Download with the first process of each machine while the other processes wait.

    Raises:
        BadInput: A download failed; every process raises the same error.
    """
    # The default group would time out during a long download.
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    failure = None
    if fabric.local_rank == 0:
        try:
            data.download()
        except BadInput as error:
            failure = str(error)
    failures: list[str | None] = [None] * fabric.world_size
    dist.all_gather_object(failures, failure, group=group)
    dist.destroy_process_group(group)
    for failure in filter(None, failures):
        raise BadInput(failure)


def open_evaluation_data(
    config: DataConfig,
    batch_size: int,
    preprocessing: Mapping[str, Any],
    *,
    source: str,
    task: str | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """Open the validation images of a data set, prepared as weights or an artefact expect.

    Args:
        config: The resolved group `data`.
        batch_size: Images of a batch.
        preprocessing: `mean`, `std`, `interpolation` and `crop_pct`; others are ignored.
        source: What is evaluated, for messages.
        task: What it was made for; None to leave that unchecked.
        num_classes: Classes that it knows; None where that is not known.

    Raises:
        BadInput: The data cannot be opened, or is of another task or number of classes.
    """
    keys = ("mean", "std", "interpolation", "crop_pct")
    prepared: dict[str, Any] = {key: preprocessing.get(key) for key in keys}
    data = create_datamodule(config, batch_size=batch_size, **prepared)
    if task not in (None, data.task):
        raise BadInput(f"{source} is for {task}, data.name={config.name} is for {data.task}")
    data.setup("validate")
    if num_classes not in (None, data.num_classes):
        raise BadInput(
            f"{source} knows {num_classes} classes, the data {config.name} has {data.num_classes};"
            " name the data that it was trained on"
        )
    return data


def check_against_data(model: ModelConfig, data: ImageData) -> None:
    """Raise `BadInput` if the model is for another task, or its settings disagree with the data.

    Args:
        model: The resolved group `model`.
        data: After `setup`.
    """
    check_task(model.name, data)
    for key, given, has, unit in (
        ("num_classes", model.num_classes, data.num_classes, "classes"),
        ("in_chans", model.in_chans, data.in_chans, "channels"),
    ):
        if given is not None and given != has:
            raise BadInput(
                f"model.{key}={given} disagrees with the data, which has {has} {unit}; leave it out"
            )


def normalization(
    model: ModelConfig, resumed: dict[str, Any] | None = None
) -> tuple[list[float] | None, list[float] | None]:
    """Return mean and std that the starting weights were trained with; None from scratch.

    Args:
        model: The resolved group `model`.
        resumed: The checkpoint of a run that continues; the files it started from may be gone.
    """
    if model.checkpoint_path is not None:
        content = resumed or read_checkpoint(model.checkpoint_path)
        if is_own(content):
            prepared = content["data"]["preprocessing"]
            return prepared["mean"], prepared["std"]
    if model.pretrained or model.checkpoint_path is not None:
        return expected_statistics(model.encoder or model.name)
    return None, None


def expected_statistics(name: str) -> Normalization:
    """Return mean and std that published weights expect; ImageNet's where they are not known."""
    published = published_input(name)
    mean, std = (published[key] or IMAGENET_STATISTICS[key] for key in ("mean", "std"))
    return list(mean), list(std)


def build_model(
    run: TrainRun, data: ImageData, fresh: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model and check that it takes the images of `data`.

    Args:
        run: The resolved settings.
        data: After `setup`.
        fresh: Load no starting weights: those of a checkpoint will replace them.

    Returns:
        The model and the arguments that build it again.

    Raises:
        BadInput: An argument or the size of the images cannot work.
        BadWeights: Starting weights that do not fit.
    """
    arguments = dataclasses.asdict(run.model)
    extra = arguments.pop("kwargs")
    weights = {key: arguments.pop(key) for key in ("pretrained", "checkpoint_path")}
    arguments |= {**extra, "num_classes": data.num_classes, "in_chans": data.in_chans}
    model = create_model(**arguments, **({} if fresh else weights))
    check_forward(model, run.model.name, data, run.train.batch_size)
    return model, arguments


def check_forward(model: nn.Module, name: str, data: ImageData, batch_size: int = 2) -> None:
    """Raise `BadInput` unless `model` returns what the data needs for an image of its size.

    Args:
        model: It is not changed.
        name: For the message.
        data: Has the size.
        batch_size: With 1, training mode is tried too: batch norms may need more images.
    """
    image = torch.zeros(1, data.in_chans, *data.image_size)
    size = "x".join(map(str, data.image_size))
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(image)
            if batch_size == 1:
                copy.deepcopy(model).train()(image)
    except BadInput:
        raise
    except Exception as error:  # models raise errors of any kind
        batch = f" with train.batch_size={batch_size}" if batch_size == 1 else ""
        raise BadInput(
            f"data.image_size={size}{batch} cannot work with {name}: {first_line(error)}"
        ) from error
    finally:
        model.train(training)
    if logits.shape != (1, *data.output_shape):
        returned, needed = (
            "x".join(map(str, shape)) for shape in (logits.shape[1:], data.output_shape)
        )
        raise BadInput(
            f"{name} returns {returned} numbers for an image of {size}, the data needs {needed};"
            " choose another model, or change model.global_pool or model.kwargs"
        )


def build_mixing(train: TrainConfig, num_classes: int) -> Mixing | None:
    """Return what mixes batches, or None where the configuration mixes nothing."""
    if not (train.mixup or train.cutmix):
        return None
    return Mixing(
        num_classes,
        mixup=train.mixup,
        cutmix=train.cutmix,
        prob=train.mixup_prob,
        switch_prob=train.mixup_switch_prob,
        label_smoothing=train.label_smoothing,
    )


def build_criterion(train: TrainConfig, model: nn.Module, data: ImageData) -> nn.Module:
    """Return the loss, with a teacher around it if `train.distill` says so.

    Called with (outputs, targets), a `Distillation` with (outputs, targets, images).

    Raises:
        BadInput: An unknown loss, a teacher that cannot teach these classes, or what has no meaning
            for the task of the data.
        BadWeights: Weights that do not fit the teacher.
    """
    task = get_task(data.task)
    task.check(train)
    mixed = bool(train.mixup or train.cutmix)  # then mixing has smoothed the labels already
    base = create_loss(
        train.loss or task.loss,
        task=data.task,
        label_smoothing=0.0 if mixed else train.label_smoothing,
        **dict(train.loss_args),
    )
    if isinstance(base, BiasLoss):
        base.watch(model)
    if train.distill == "none":
        return base
    teacher, expects = _build_teacher(train, data)
    two_heads = getattr(model, "set_distilled_training", None)
    if two_heads is not None:
        two_heads(True)
    return Distillation(
        base,
        teacher,
        kind=train.distill,
        alpha=train.distill_alpha,
        tau=train.distill_tau,
        renormalize=_renormalization((data.mean, data.std), expects),
    )


def _build_teacher(train: TrainConfig, data: ImageData) -> tuple[nn.Module, Normalization]:
    """Return the teacher and the normalisation it expects."""
    name, weights = str(train.distill_teacher), train.distill_teacher_weights
    if weights is None:
        teacher = create_model(name, pretrained=True, in_chans=data.in_chans)
    else:
        teacher = create_model(name, num_classes=data.num_classes, in_chans=data.in_chans)
        load_weights(teacher, weights)
    classes = getattr(teacher, "num_classes", data.num_classes)
    if classes != data.num_classes:
        raise BadInput(
            f"train.distill_teacher={name} knows {classes} classes, the data has"
            f" {data.num_classes}; give train.distill_teacher_weights trained on this data"
        )
    check_forward(teacher, name, data)
    if weights is not None and is_own(content := read_checkpoint(weights)):
        expects = content["data"]["preprocessing"]
        return teacher, (list(expects["mean"]), list(expects["std"]))
    return teacher, expected_statistics(name)


def _renormalization(ours: Normalization, theirs: Normalization) -> Callable | None:
    if all(
        torch.allclose(torch.tensor(a), torch.tensor(b)) for a, b in zip(ours, theirs, strict=True)
    ):
        return None
    (mean, std), (other_mean, other_std) = (
        (torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None])
        for mean, std in (ours, theirs)
    )
    scale, shift = std / other_std, (mean - other_mean) / other_std

    def renormalize(images: Tensor) -> Tensor:
        return images * scale.to(images) + shift.to(images)

    return renormalize
