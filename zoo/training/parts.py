"""What a run is made of: model, data, teacher, built from the configuration and checked."""

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from torch import Tensor, nn

import zoo
from zoo.data import create_datamodule
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput
from zoo.training.checkpoint import is_own
from zoo.training.losses import BiasLoss, Distillation, create_loss
from zoo.training.mixing import Mixing
from zoo.training.tasks import check_task, get_task
from zoo.weights import read_checkpoint

Normalization = tuple[list[float], list[float]]


def build_data(cfg: Any, fabric: Fabric, resumed: dict[str, Any] | None = None) -> ImageData:
    """Open the data of a training run.

    Args:
        cfg: The configuration of the run.
        fabric: The processes of the run.
        resumed: The checkpoint that it goes on with.

    Raises:
        BadInput: The data cannot be had, or `cfg.model` names other numbers than it has.
    """
    mean, std = normalization(cfg.model, resumed)
    data = create_datamodule(
        cfg.data, batch_size=cfg.train.batch_size, mean=mean, std=std, seed=cfg.train.seed
    )
    if data.config.download and fabric.world_size > 1:
        _download_once(data, fabric)
    data.setup("fit")
    check_against_data(cfg.model, data)
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


def check_against_data(model: Any, data: ImageData) -> None:
    """Raise `BadInput` where the model is for another task, or told of other numbers than the data.

    Args:
        model: The group `model` of the configuration.
        data: After `setup`.
    """
    check_task(model.name, data)
    for key, given, has in (
        ("num_classes", model.num_classes, data.num_classes),
        ("in_chans", model.in_chans, data.in_chans),
    ):
        if given is not None and given != has:
            what = {"num_classes": "classes", "in_chans": "channels"}[key]
            raise BadInput(
                f"model.{key}={given} disagrees with the data, which has {has} {what}; leave it out"
            )


def normalization(
    model: Any, resumed: dict[str, Any] | None = None
) -> tuple[list[float] | None, list[float] | None]:
    """Return the mean and std that weights to start from were trained with; None from scratch.

    Args:
        model: The group `model` of the configuration.
        resumed: The checkpoint to go on with, which has them; others need no longer be there.
    """
    if model.checkpoint_path is not None:
        content = resumed or read_checkpoint(model.checkpoint_path)
        if is_own(content):
            prepared = content["data"]["preprocessing"]
            return prepared["mean"], prepared["std"]
    if model.pretrained or model.checkpoint_path is not None:
        published = published_input(model.encoder or model.name)
        return list(published["mean"]), list(published["std"])
    return None, None


def published_input(name: str) -> dict[str, Any]:
    """Return mean, std, interpolation and crop_pct that the published weights of `name` expect."""
    if name.startswith("timm/"):
        import timm

        found = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        expects = found.to_dict() if found is not None else {}
    else:
        expects = zoo.model_info(name).get("input", {})
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    keys = ("mean", "std", "interpolation", "crop_pct")
    return {key: expects.get(key, imagenet.get(key)) for key in keys}


def model_arguments(model: Any, num_classes: int, in_chans: int) -> dict[str, Any]:
    """Return the arguments of `zoo.create_model` as plain values, without any weights.

    Args:
        model: The group `model` of the configuration.
        num_classes: What the data has.
        in_chans: What the data has.
    """
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(model)), resolve=True)
    extra = plain.pop("kwargs")
    del plain["pretrained"], plain["checkpoint_path"]
    return {**plain, **extra, "num_classes": num_classes, "in_chans": in_chans}


def build_model(cfg: Any, data: ImageData, fresh: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model and check that it takes the images of `data`.

    Args:
        cfg: The configuration of the run.
        data: After `setup`.
        fresh: Leave out the weights to start from: a checkpoint to go on with will replace them.

    Returns:
        The model and the arguments that build it again.

    Raises:
        BadInput: An argument or the size of the images cannot work.
        BadWeights: Weights to start from that do not fit.
    """
    arguments = model_arguments(cfg.model, data.num_classes, data.in_chans)
    weights = {key: cfg.model[key] for key in ("pretrained", "checkpoint_path") if not fresh}
    model = zoo.create_model(**arguments, **weights)
    check_forward(model, cfg.model.name, data, cfg.train.batch_size)
    return model, arguments


def check_forward(model: nn.Module, name: str, data: ImageData, batch_size: int = 2) -> None:
    """Raise `BadInput` unless `model` makes what the data asks for of an image of its size.

    Args:
        model: Left as it is.
        name: For the message.
        data: Says the size.
        batch_size: With 1, training is tried too: batch norms may need more.
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
    except Exception as error:  # a model may object in any way
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"data.image_size={size} with train.batch_size={batch_size} cannot work with {name}:"
            f" {first}"
            if batch_size == 1
            else f"data.image_size={size} cannot work with {name}: {first}"
        ) from error
    finally:
        model.train(training)
    if logits.shape != (1, *data.output_shape):
        made, wanted = (
            "x".join(map(str, shape)) for shape in (logits.shape[1:], data.output_shape)
        )
        raise BadInput(
            f"{name} returns {made} numbers an image of {size}, the data ask for {wanted}; take a"
            " model for that (model.global_pool, model.kwargs)"
        )


def build_mixing(train: Any, num_classes: int) -> Mixing | None:
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


def build_criterion(train: Any, model: nn.Module, data: ImageData) -> nn.Module:
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


def _build_teacher(train: Any, data: ImageData) -> tuple[nn.Module, Normalization]:
    """Return the teacher and the normalisation it expects."""
    name, weights = train.distill_teacher, train.distill_teacher_weights
    if weights is None:
        teacher = zoo.create_model(name, pretrained=True, in_chans=data.in_chans)
    else:
        teacher = zoo.create_model(name, num_classes=data.num_classes, in_chans=data.in_chans)
        zoo.load_weights(teacher, weights)
    classes = getattr(teacher, "num_classes", data.num_classes)
    if classes != data.num_classes:
        raise BadInput(
            f"train.distill_teacher={name} knows {classes} classes, the data has"
            f" {data.num_classes}; give train.distill_teacher_weights trained on this data"
        )
    check_forward(teacher, name, data)
    expects = published_input(name)
    if weights is not None and is_own(content := read_checkpoint(weights)):
        expects = content["data"]["preprocessing"]
    return teacher, (list(expects["mean"]), list(expects["std"]))


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
