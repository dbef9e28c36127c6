"""Build what the training loop needs from the settings and the data."""

import dataclasses
import logging
from typing import Any

import torch
from lightning.fabric import Fabric, seed_everything
from timm.utils import ModelEmaV3

from zoo.data.datamodule import ImageData
from zoo.errors import BadInput
from zoo.settings import TrainConfig, TrainRun
from zoo.training import builders, freezing, optim, run_data, run_folder
from zoo.training.components import Components
from zoo.training.method import TrainingMethod


def build_components(
    run: TrainRun,
    data: ImageData,
    fabric: Fabric,
    logger: logging.Logger,
    resumed: bool,
    method: TrainingMethod,
) -> Components:
    """Build the components of the loop; raise an error for settings that do not work together."""
    train = run.train
    method.check_processes(fabric.world_size)
    seed_everything(train.seed, verbose=False)
    net, arguments = builders.build_model(run, data, with_weights=not resumed)
    net = method.transform(net)
    criterion = builders.build_criterion(train, net, data)
    if train.sync_bn:  # replaces batch norms, so `freeze` must come afterwards
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    frozen_norms = freezing.freeze(net, train.freeze)
    unfreezing = None
    if train.freeze_epochs is not None:
        if fabric.world_size > 1:
            raise BadInput(
                f"train.freeze_epochs={train.freeze_epochs} is not supported with several"
                " processes; use train.devices=1, or leave it out"
            )
        frozen = [parameter for parameter in trained if not parameter.requires_grad]
        unfreezing = freezing.Unfreezing(net, frozen, frozen_norms, train.freeze_epochs)
        frozen_norms = []
    classifier = optim.classifier_names(net)
    net = fabric.to_device(net)
    if not resumed:
        builders.fit_hash(net, data)
    updates = _updates_per_epoch(train, data)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    net = method.prepare(net, data, resumed=resumed, layout=layout)
    method.plan(updates * train.epochs)
    entries = method.checkpoint_entries(net)
    if train.channels_last:
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = train.batch_size * train.accumulate * fabric.world_size
    lr = optim.scaled_lr(train, images)
    optimizer = optim.create_optimizer(net, train, lr)
    scheduler = optim.create_scheduler(optimizer, train, updates)
    ema = None
    if train.ema_decay > 0:
        ema = ModelEmaV3(net, decay=train.ema_decay, use_warmup=train.ema_warmup)
    executed: Any = torch.compile(net) if train.compile else net
    forward, wrapped = fabric.setup(executed, optimizer)
    if train.warmup_epochs >= train.epochs and scheduler is not None:
        logger.warning(
            f"train.warmup_epochs={train.warmup_epochs:g} of train.epochs={train.epochs}: the"
            " whole run is warm-up, with a lower learning rate than train.lr; lower it, or train"
            " longer"
        )
    logger.info(
        f"learning rate {lr:.3g}: {train.lr:g} for updates of {train.lr_base_batch} images, scaled"
        f" (train.lr_scale={train.lr_scale}) to {images} images = {train.batch_size} per batch"
        f" x {train.accumulate} batches x {fabric.world_size} processes"
    )
    return Components(
        data=data,
        net=net,
        forward=forward,
        optimizer=wrapped,
        scheduler=scheduler,
        criterion=fabric.to_device(criterion),
        mixing=builders.build_mixing(train, data.num_classes),
        ema=ema,
        frozen_norms=frozen_norms,
        clipped=optim.clipped_parameters(net, train.clip_mode, classifier),
        method=method,
        unfreezing=unfreezing,
        about={
            **entries,
            "model": arguments,
            "data": run_data.describe(data),
            "config": dataclasses.asdict(run),
            "versions": run_folder.versions(),
        },
    )


def _updates_per_epoch(train: TrainConfig, data: Any) -> int:
    batches = len(data.train_dataloader())
    batches = min(batches, train.limit_train_batches or batches)
    if train.accumulate > batches:
        raise BadInput(
            f"train.accumulate={train.accumulate} is more than the {batches} batches of an epoch;"
            " lower it"
        )
    return -(-batches // train.accumulate)
