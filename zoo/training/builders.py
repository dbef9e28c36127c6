"""Build and check the data, model, loss and teacher of a run from its settings."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from zoo import registry
from zoo.backbone import Backbone
from zoo.data.create import create_datamodule
from zoo.data.datamodule import ImageData
from zoo.data.holdout import SavedSplit
from zoo.data.listing import shortened
from zoo.data.processes import download_once
from zoo.environment import is_out_of_memory
from zoo.errors import BadInput, first_line
from zoo.factory import create_model
from zoo.inputs import published_normalisation, published_statistics
from zoo.progress import phase
from zoo.settings import DataConfig, ModelConfig, TrainConfig, TrainRun
from zoo.training import logit_store
from zoo.training.checkpoint import is_zoo_checkpoint
from zoo.training.checkpoint_schema import check as check_checkpoint
from zoo.training.checks import check_choice
from zoo.training.logit_store import LogitStore
from zoo.training.losses import Distillation, StoredDistillation, create_loss
from zoo.training.mixing import Mixing
from zoo.training.report_files import class_names
from zoo.training.tasks import check_task, get_task
from zoo.weights import load_content, read_checkpoint

Normalization = tuple[list[float], list[float]]  # mean and std of each channel


def build_data(run: TrainRun, fabric: Fabric, normalisation: Mapping[str, Any] | None) -> ImageData:
    """Open the data of a training run.

    Args:
        run: The resolved settings.
        fabric: Devices and processes of the run.
        normalisation: `mean`, `std` and `channel_order` that the run of the initial weights used;
            None if unknown.

    Raises:
        BadInput: The data cannot be opened, or does not fit `run.model`.
    """
    expected: Mapping[str, Any] = normalisation or {}
    if not expected and (run.model.pretrained or run.model.checkpoint_path is not None):
        expected = published_normalisation(run.model.encoder or run.model.name)
    data = create_datamodule(
        run.data,
        batch_size=1 if run.train.batch_size == "auto" else run.train.batch_size,  # found later
        seed=run.train.seed,
        **expected,
    )
    if data.config.download and fabric.world_size > 1:
        download_once(data, fabric)
    data.setup("fit")
    check_against_data(run.model, data)
    if run.train.sampler == "balanced":
        data.class_counts()  # raises an error if the classes are not known
        data.is_balanced = True
    return data


def open_evaluation_data(
    config: DataConfig,
    batch_size: int,
    preprocessing: Mapping[str, Any],
    *,
    source: str,
    task: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    saved_split: SavedSplit | None = None,
) -> ImageData:
    """Open the validation images of a data set, with the preprocessing of a model or an artefact.

    Args:
        config: The resolved group `data`.
        batch_size: Number of images in a batch.
        preprocessing: `mean`, `std`, `interpolation`, `crop_pct` and `channel_order`; other keys
            are ignored.
        source: The model or the artefact, for messages.
        task: Task of the source; None to skip the check.
        num_classes: Number of classes of the source; None to take those of the data.
        class_names: Names of these classes in order, if known. The classes of the data are matched
            by name, and images of other classes are left out.
        saved_split: Which images the run of the source held out, if they are known.

    Raises:
        BadInput: The data cannot be opened, has another task, or classes that cannot be matched.
    """
    keys = ("mean", "std", "interpolation", "crop_pct", "channel_order")
    prepared: dict[str, Any] = {key: preprocessing.get(key) for key in keys}
    data = create_datamodule(config, batch_size=batch_size, **prepared)
    if task not in (None, data.task):
        raise BadInput(
            f"{source} is for {task}, but data.name={config.name} is for {data.task}; choose"
            f" data for {task}"
        )
    if num_classes is None and class_names is not None:
        num_classes = len(class_names)
    binary = num_classes == 1 and data.task == "segmentation"  # one logit for two classes
    if num_classes is not None:
        data.expect_classes(2 if binary else num_classes, class_names, source)
    data.saved_split = saved_split
    data.setup("validate")
    data.accept_outputs(1 if binary else None)
    return data


def check_against_data(model: ModelConfig, data: ImageData) -> None:
    """Raise `BadInput` if task, classes or channels of the model differ from those of the data.

    Args:
        model: The resolved group `model`.
        data: The data module, after `setup`.
    """
    check_task(model.name, data)
    data.accept_outputs(_outputs(model))
    for key, value, required, unit in (
        ("num_classes", model.num_classes, data.num_outputs, "classes"),
        ("in_chans", model.in_chans, data.in_chans, "channels"),
    ):
        if value is not None and required is None:
            raise BadInput(f"model.{key}={value} has no effect on {data.task}; leave it out")
        if value is not None and value != required:
            raise BadInput(
                f"model.{key}={value} does not match the data, which has {required} {unit};"
                " leave it out"
            )


def _outputs(model: ModelConfig) -> int | None:
    """Return the outputs that the settings name, or those that the model was published with."""
    if model.num_classes is not None or not registry.is_packaged(model.name):
        return model.num_classes
    return registry.get_spec(model.name).facts.get("num_classes")


def with_image_size(run: TrainRun, data: ImageData) -> TrainRun:
    """Return the settings with `model.img_size` if the model cannot be built without it."""
    if data.task != "retrieval" or run.model.img_size is not None:
        return run
    size = list(data.image_size)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, img_size=size))


def build_model(
    run: TrainRun, data: ImageData, *, with_weights: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model, and check that it accepts the images of `data`.

    Args:
        run: The resolved settings.
        data: The data module, after `setup`.
        with_weights: Whether to load the initial weights that the settings name.

    Returns:
        The model, and the arguments of `create_model` that build it again.

    Raises:
        BadInput: An argument is invalid, or the model does not accept the image size.
        BadWeights: The initial weights do not fit.
    """
    arguments = dataclasses.asdict(run.model)
    extra = arguments.pop("kwargs")
    weights = {key: arguments.pop(key) for key in ("pretrained", "checkpoint_path", "base")}
    arguments |= {**extra, "num_classes": data.num_outputs, "in_chans": data.in_chans}
    model = create_model(**arguments, **(weights if with_weights else {}))
    check_forward(model, run.model.name, data, run.train.batch_size)
    return model, arguments


def check_forward(model: nn.Module, name: str, data: ImageData, batch_size: int = 2) -> None:
    """Raise `BadInput` unless `model` returns the output shape that the data needs.

    Args:
        model: The model, which is not changed.
        name: The name of the model, for messages.
        data: The data module, after `setup`.
        batch_size: If it is 1, training mode is tested, too: some batch norms need more images.
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
        if is_out_of_memory(error):
            raise BadInput(
                f"{name} needs more memory than is available for one image with"
                f" data.image_size={size}; lower data.image_size"
            ) from error
        batch = f" with train.batch_size={batch_size}" if batch_size == 1 else ""
        raise BadInput(
            f"{name} does not run with data.image_size={size}{batch}: {first_line(error)}"
        ) from error
    finally:
        model.train(training)
    if not data.accepts(logits.shape[1:]):
        returned, needed = (
            "x".join(map(str, shape)) for shape in (logits.shape[1:], data.output_shape)
        )
        raise BadInput(
            f"{name} returns {returned} numbers for an image of {size}, but the data needs"
            f" {needed}; choose another model, or change model.global_pool or model.kwargs"
        )


def fit_hash(net: Any, data: ImageData) -> None:
    """Fit the hash functions of a model that has some, unless its weights have them already."""
    if not hasattr(net, "fit_hash") or net.has_hash():
        return
    images = next(iter(data.train_dataloader()))[0]
    with phase("fitting the hash functions to a batch"):
        net.fit_hash(images.to(next(net.parameters()).device))


def build_mixing(train: TrainConfig, num_classes: int) -> Mixing | None:
    """Return mixup and CutMix, or None if neither is enabled."""
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
    """Return the loss; with `train.distill`, a `Distillation` that also has the teacher.

    A loss is called with (outputs, targets), a `Distillation` with (outputs, targets, images), a
    `StoredDistillation` with (outputs, targets, keys of the images).

    Raises:
        BadInput: The loss is unknown, the teacher has other classes, or the task of the data does
            not support a setting.
        BadWeights: The weights do not fit the teacher.
    """
    task = get_task(data.task)
    task.check_settings(train)
    if train.best is not None:
        check_choice("train.best", train.best, task.selectable)
    is_mixed = bool(train.mixup or train.cutmix)  # mixing already smooths the labels
    base = create_loss(
        train.loss or task.loss,
        task=data.task,
        label_smoothing=0.0 if is_mixed else train.label_smoothing,
        class_weights=_class_weights(train, data),
        **dict(train.loss_args),
    )
    if hasattr(base, "watch"):  # a loss that reads more than the outputs
        base.watch(model)  # type: ignore[operator]
    if train.distill == "none":
        return base
    if train.distill == "stored":
        store = LogitStore(str(train.distill_store))
        store.check(logit_store.describe(data, train.seed), train.epochs)
        criterion: nn.Module = StoredDistillation(base, store, alpha=train.distill_alpha)
    else:
        teacher, teacher_normalization = _build_teacher(train, data)
        criterion = Distillation(
            base,
            teacher,
            kind=train.distill,
            alpha=train.distill_alpha,
            tau=train.distill_tau,
            renormalize=renormalization((data.mean, data.std), teacher_normalization),
        )
    has_one_head = isinstance(model, Backbone) and not hasattr(model.head, "distilled_training")
    if not has_one_head and hasattr(model, "set_distilled_training"):  # timm's models, too
        model.set_distilled_training(True)  # type: ignore[operator]
    return criterion


def _class_weights(train: TrainConfig, data: ImageData) -> Tensor | None:
    """Return the weight of each class; balanced ones are 1 on average over the training images.

    Raises:
        BadInput: Their number is not that of the classes, or the classes are not known.
    """
    given = train.class_weights
    if given is None:
        return None
    if given != "balanced":
        if len(given) != data.num_classes:
            raise BadInput(
                f"train.class_weights has {len(given)} numbers, but the data has"
                f" {data.num_classes} classes: {shortened(class_names(data))}"
            )
        return torch.tensor(given, dtype=torch.float32)
    counts = torch.tensor(data.class_counts(), dtype=torch.float64)
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp(min=1))
    return torch.where(present, weights, 1.0).float()


def _build_teacher(train: TrainConfig, data: ImageData) -> tuple[nn.Module, Normalization]:
    """Return the teacher and the normalisation it expects."""
    name, weights = str(train.distill_teacher), train.distill_teacher_weights
    content: dict[str, Any] = {}
    if weights is None:
        teacher = create_model(name, pretrained=True, in_chans=data.in_chans)
    else:
        teacher = create_model(name, num_classes=data.num_classes, in_chans=data.in_chans)
        content = read_checkpoint(weights)
        advice = "train.distill_teacher_weights must be trained on the classes of the data"
        load_content(teacher, content, weights, advice=advice)
    classes = getattr(teacher, "num_classes", data.num_classes)
    if classes != data.num_classes:
        raise BadInput(
            f"train.distill_teacher={name} has {classes} classes, but the data has"
            f" {data.num_classes}; give train.distill_teacher_weights trained on this data"
        )
    check_forward(teacher, name, data)
    if weights is not None and is_zoo_checkpoint(content):
        check_checkpoint(content, weights)
        preprocessing = content["data"]["preprocessing"]
        return teacher, (list(preprocessing["mean"]), list(preprocessing["std"]))
    return teacher, published_statistics(name)


def renormalization(student: Normalization, teacher: Normalization) -> Callable | None:
    """Return a function from the student's normalisation to the teacher's; None if they agree."""
    if all(
        torch.allclose(torch.tensor(a), torch.tensor(b))
        for a, b in zip(student, teacher, strict=True)
    ):
        return None
    (mean, std), (teacher_mean, teacher_std) = (
        (torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None])
        for mean, std in (student, teacher)
    )
    scale, shift = std / teacher_std, (mean - teacher_mean) / teacher_std

    def renormalize(images: Tensor) -> Tensor:
        return images * scale.to(images) + shift.to(images)

    return renormalize
