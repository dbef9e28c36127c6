"""`train`: train a model with resolved settings, and write a run folder."""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from timm.utils import ModelEmaV3

from zoo.data import holdout
from zoo.data.datamodule import ImageData
from zoo.environment import describe_machine, is_out_of_memory
from zoo.errors import BadInput, first_line, folder_noted
from zoo.progress import phase
from zoo.quoting import command_line
from zoo.settings import TrainConfig, TrainRun
from zoo.training import (
    batch_size,
    builders,
    checkpoint,
    dry_run,
    freezing,
    logs,
    lr_range,
    optim,
    run_data,
    run_folder,
    run_pictures,
    slurm,
    trackers,
)
from zoo.training.allocator import disable_malloc_trim
from zoo.training.checks import PRECISIONS
from zoo.training.disk import sole_writer
from zoo.training.faults import report_machine_faults
from zoo.training.interrupt import EXIT_CODES, Interrupt
from zoo.training.loop import Components, Diverged, Interrupted, Loop
from zoo.training.method import TrainingMethod
from zoo.training.stopping import TimeLimit, reason_to_end


def train(
    run: TrainRun,
    resumed: dict[str, Any] | None = None,
    method: TrainingMethod | None = None,
    *,
    normalisation: Mapping[str, Any] | None = None,
    cell: run_folder.CellRun | None = None,
) -> run_folder.TrainedRun | None:
    """Train a model, and log the progress.

    Args:
        run: The resolved settings.
        resumed: The content of the checkpoint to continue from, and its `path`.
        method: The training method; None for ordinary training.
        normalisation: `mean`, `std` and `channel_order` that the run of the initial weights used;
            None if unknown.
        cell: The run of a sweep; None for a new run in `train.out`.

    Returns:
        The run folder, and its best score; None after a dry run.

    Raises:
        ZooError: A setting is invalid (nothing was written), or training diverged.
        SystemExit: Ctrl-C, SIGTERM or SIGUSR1; the run can be resumed.
    """
    planned = run.train
    for name in planned.loggers:
        trackers.check_installed(name)
    if planned.dry_run:
        run = dataclasses.replace(run, train=dry_run.shortened(planned))
    with (
        Interrupt() as interrupt,
        _determinism(run.train.deterministic),
        report_machine_faults(memory=_MORE_MEMORY, loader=_FEWER_WORKERS),
    ):
        fabric = _launch(run.train, alone=cell is not None)
        console = logs.make_console()
        logger = logs.make_logger(console, fabric.is_global_zero)
        with logs.data_warnings(console):
            with phase("opening the data"):
                data = builders.build_data(run, fabric, normalisation)
                run = builders.with_image_size(run, data)
                if resumed is not None:
                    run_data.check_unchanged(resumed, data, resumed["path"])
            method = method or TrainingMethod()
            if run.train.batch_size == "auto":
                run = _with_batch_size(run, data, fabric, logger, interrupt)
                planned = dataclasses.replace(planned, batch_size=run.train.batch_size)
            with phase(f"building {run.model.name}"):
                components = _build(run, data, fabric, logger, resumed is not None, method)
            if planned.dry_run:
                loop = Loop(fabric, components, run.train, None, logger)
                dry_run.execute(loop, planned, interrupt)
                return None
            if planned.find_lr:
                _find_lr(run, components, fabric, logger, interrupt)
                return None
            return _train(run, components, fabric, console, logger, resumed, interrupt, cell)


def _with_batch_size(
    run: TrainRun, data: ImageData, fabric: Fabric, logger: logging.Logger, interrupt: Interrupt
) -> TrainRun:
    """Return the settings with the largest batch size that fits instead of `auto`."""
    if fabric.world_size > 1:
        raise BadInput(
            "train.batch_size=auto is not supported with several processes; give a number"
        )
    if data.streaming:
        raise BadInput("train.batch_size=auto needs a list of images, not shards; give a number")
    images = len(data.source("train"))
    quiet = logging.getLogger("zoo.train.attempts")
    quiet.propagate, quiet.disabled = False, True

    def sized(size: int) -> TrainRun:
        data.batch_size = data.eval_batch_size = size
        return dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=size))

    def attempt(size: int) -> None:
        tried = sized(size)
        short = dataclasses.replace(tried, train=dry_run.shortened(tried.train))
        parts = _build(short, data, fabric, quiet, False, TrainingMethod())
        dry_run.step(Loop(fabric, parts, short.train, None, quiet), interrupt)

    on_gpu = fabric.device.type == "cuda"  # reports too little memory as an error
    with phase("finding the batch size"):
        size, why = batch_size.find(
            images,
            attempt,
            is_out_of_memory,
            (lambda: 0.0) if on_gpu else batch_size.peak_memory,
            batch_size.free_memory,
        )
    if on_gpu:
        torch.cuda.empty_cache()
    logger.info(f"train.batch_size=auto: {size} images ({why})")
    return sized(size)


def _find_lr(
    run: TrainRun,
    components: Components,
    fabric: Fabric,
    logger: logging.Logger,
    interrupt: Interrupt,
) -> None:
    """Run the range test, draw it, and print the suggested learning rate."""
    train = dataclasses.replace(
        run.train,
        epochs=lr_range.UPDATES,
        limit_val_batches=1,
        log_every=1,
        stop_at_epoch=None,
        patience=None,
        max_time=None,
        freeze_epochs=None,
    )
    images = train.batch_size * train.accumulate * fabric.world_size
    factor = optim.scaled_lr(train, images) / train.lr
    components.scheduler = lr_range.RangeSchedule(components.optimizer, factor)
    log = lr_range.RangeLog()
    loop = Loop(fabric, components, train, None, logger)
    with contextlib.suppress(lr_range.Enough, Diverged):
        dry_run.step(loop, interrupt, log)
    chosen = lr_range.suggestion(log.rates, log.losses)
    chosen = None if chosen is None else lr_range.rounded(chosen)
    if not log.losses:
        raise BadInput("train.find_lr: the loss is not finite from the start; check the data")
    if fabric.is_global_zero:
        folder = lr_range.write(train.out, run.model.name, log, chosen)
        text = (
            "the loss never falls; check the data and the settings"
            if chosen is None
            else f"the loss falls fastest at train.lr={chosen:g}; choose it or a lower one"
        )
        logger.info(f"{len(log.losses)} updates: {text}. The picture: {folder / 'lr_range.png'}")


# Variables with which a cluster numbers the machines of a job.
_MACHINE_NUMBERS = {"NODE_RANK", "GROUP_RANK", "SLURM_NODEID"}
_MORE_MEMORY = (
    "lower train.batch_size (train.accumulate=2 keeps the images per update), data.image_size or"
    " data.num_workers"
)
_FEWER_WORKERS = "use fewer processes: data.num_workers=<fewer, 0 for none>"


def _kept(folder: Path, command: str) -> str:
    """Return how a run continues after a fault of the machine."""
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "no checkpoint was written"
    return f"the last checkpoint is intact: continue with {command}"


def _train(
    run: TrainRun,
    components: Components,
    fabric: Fabric,
    console: Console,
    logger: logging.Logger,
    resumed: dict[str, Any] | None,
    interrupt: Interrupt,
    cell: run_folder.CellRun | None,
) -> run_folder.TrainedRun:
    resumed_folder = None
    if resumed is not None:
        _check_progress(resumed["progress"], fabric.world_size, run.train, resumed["path"])
        resumed_folder = checkpoint.folder_of(resumed["path"])
    folder = _agree_on_folder(fabric, run, resumed_folder, cell)
    own_folder = folder if fabric.is_global_zero else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder_noted(folder))
        if own_folder is not None:
            stack.enter_context(sole_writer(own_folder))
        loop = Loop(fabric, components, run.train, own_folder, logger)
        if cell is not None:
            loop.is_lost = cell.is_lost
        if resumed is not None:
            loop.restore(resumed, resumed["path"])
        stack.enter_context(
            report_machine_faults(
                memory=_MORE_MEMORY,
                loader=_FEWER_WORKERS,
                folder=folder,
                kept=lambda: _kept(folder, _command_to_continue(folder, cell)),
            )
        )
        if own_folder is not None:
            run_folder.describe(own_folder, _used_settings(components))
            if resumed is None and (halves := components.data.split_keys()) is not None:
                holdout.write(own_folder, halves)
        return _run_loop(run, loop, console, logger, resumed, interrupt, folder, cell)


def _used_settings(components: Components) -> dict[str, Any]:
    """Return the settings with the values that replaced null in the groups `model` and `data`."""
    config, model = components.about["config"], components.about["model"]
    used = {key: value for key, value in model.items() if key in config["model"]}
    data = dataclasses.asdict(components.data.config)
    return {**config, "model": config["model"] | used, "data": data}


def _run_loop(
    run: TrainRun,
    loop: Loop,
    console: Console,
    logger: logging.Logger,
    resumed: dict[str, Any] | None,
    interrupt: Interrupt,
    folder: Path,
    cell: run_folder.CellRun | None,
) -> run_folder.TrainedRun:
    own_folder, progress = loop.folder, loop.progress
    loggers, settings = run.train.loggers, loop.components.about["config"]
    log = logs.MetricsLog(own_folder, loggers, progress.epoch, progress.update, settings)
    pictured = own_folder if "pictures" in loggers else None
    total = loop.batches * run.train.epochs
    done = loop.batches * progress.epoch + progress.batch
    has_bar = run.train.progress and own_folder is not None
    with (
        contextlib.closing(log),
        logs.copied_to_file(logger, None if own_folder is None else own_folder / "train.log"),
        logs.ProgressBar(console, total, done, has_bar) as bar,
    ):
        for line in loop.describe():
            logger.info(line)
        _log_start(logger, folder, loop, loop.components.about, resumed)
        if resumed is None:
            loop.save_start()
            if pictured is not None and (first := run_pictures.draw_batch(pictured, loop)):
                log.log_picture(first, 0)
        try:
            loop.run(log, bar, interrupt)
        except Interrupted as stop:
            command = _command_to_continue(folder, cell)
            _report_interruption(logger, command, loop, interrupt)
            if stop.is_preemption:
                if own_folder is not None:
                    logger.warning(slurm.requeue())
                loop.fabric.barrier()  # SLURM may end a job whose first process ends
            sys.exit(EXIT_CODES.get(interrupt.signal, 1) if interrupt.signal is not None else 1)
        if pictured is not None and (curves := run_pictures.draw_curves(pictured)):
            log.log_picture(curves, progress.update)
        if loop.ended:
            logger.info(f"ended after epoch {progress.epoch}: {loop.ended}")
        logger.info(_summary(folder, loop) if cell is None else _best(loop))
    return run_folder.TrainedRun(folder, progress.best)


def _check_progress(
    progress: dict[str, Any], world_size: int, train: TrainConfig, path: Path
) -> None:
    """Raise `BadInput` unless the run can continue with `world_size` processes."""
    if progress["world_size"] != world_size:
        raise BadInput(
            f"{path} was trained with {progress['world_size']} processes; resume with"
            f" {progress['world_size']} (got {world_size}), otherwise the data order changes"
        )
    if progress["epoch"] >= train.epochs:
        raise BadInput(
            f"the run of {path} has finished its {progress['epoch']} epochs; give"
            f" train.epochs=<more than {progress['epoch']}> to continue it"
        )
    used, best_epoch = progress.get("seconds", 0.0), progress["best_epoch"]
    is_over = TimeLimit(train, used).is_over
    if reason := reason_to_end(train, progress["epoch"], best_epoch, is_over=is_over):
        (key,) = _key_to_raise(reason)
        raise BadInput(
            f"the run of {path} has ended after {progress['epoch']} epochs ({reason}); give"
            f" {key}=<more> to continue it"
        )
    if train.stop_at_epoch is not None and progress["epoch"] >= train.stop_at_epoch:
        raise BadInput(
            f"train.stop_at_epoch={train.stop_at_epoch} has no effect: the run of {path} has"
            f" completed {progress['epoch']} epochs; give a higher one, or leave it out"
        )


def _launch(train: TrainConfig, *, alone: bool = False) -> Fabric:
    """Start the processes, and return the Fabric of this process.

    Args:
        train: The group `train` of the settings.
        alone: Whether this is the only process of the run, although a cluster started others.
    """
    devices, nodes = train.devices, train.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started the processes
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices not in ("auto", local):
            raise BadInput(
                f"train.devices={devices} differs from the {local} processes that torchrun started;"
                " leave it out"
            )
        started = int(os.environ["WORLD_SIZE"]) // local
        if nodes not in (1, started):
            raise BadInput(
                f"train.num_nodes={nodes} differs from the {started} machines of torchrun; leave it"
                " out"
            )
        devices, nodes = local, started
    elif devices == "auto" and train.accelerator == "cpu":
        devices = 1
    _check_machine(train, devices)
    try:
        fabric = Fabric(
            accelerator=train.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=train.strategy,
            precision=PRECISIONS[str(train.precision)],  # type: ignore[arg-type]
            plugins=[LightningEnvironment()] if alone else None,
        )
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise BadInput(
            f"train.accelerator={train.accelerator} with train.devices={train.devices} is not"
            f" available: {first_line(error)}"
        ) from error
    if fabric.device.type == "cpu":
        disable_malloc_trim()
    if train.sync_bn and (fabric.world_size == 1 or fabric.device.type != "cuda"):
        raise BadInput(
            "train.sync_bn=True has no effect without several processes on GPUs; leave it out"
        )
    return fabric


def _check_machine(train: TrainConfig, devices: Any) -> None:
    """Raise `BadInput` for what this machine does not have, before any process is started."""
    gpus = torch.cuda.device_count()
    is_auto = train.accelerator == "auto"
    wants_gpus = train.accelerator in ("cuda", "gpu") or (is_auto and gpus > 0)
    has_mps = is_auto and torch.backends.mps.is_available()
    if train.precision == "fp16" and not wants_gpus and not has_mps and train.accelerator != "mps":
        raise BadInput("train.precision=fp16 needs a GPU; on a CPU use train.precision=bf16 or 32")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if train.num_nodes > 1 and not _MACHINE_NUMBERS & os.environ.keys():
        raise BadInput(
            f"train.num_nodes={train.num_nodes} would wait for other machines: start train.py with"
            " torchrun on each of them (torchrun --nnodes=... train.py ...)"
        )
    if not isinstance(devices, int) or has_mps or train.accelerator == "mps":
        return
    available = gpus if wants_gpus else describe_machine()["usable_cores"]
    if devices > available and (available or not wants_gpus):
        raise BadInput(
            f"train.devices={devices} is more than the {available}"
            f" {'GPUs' if wants_gpus else 'cores'} of this machine; give at most {available}"
        )


def _build(
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


def _agree_on_folder(
    fabric: Fabric, run: TrainRun, resumed: Path | None, cell: run_folder.CellRun | None
) -> Path:
    """Return the folder of the resumed run, or a new one that the first process creates."""
    if resumed is not None:
        return resumed
    if cell is not None:
        (cell.folder / "checkpoints").mkdir(parents=True)
        return cell.folder
    created: Any = None
    if fabric.is_global_zero:
        try:
            created = run_folder.create(run.train.out, run.model.name)
        except BadInput as error:  # raised below, in every process
            created = error
    created = fabric.broadcast(created)
    if isinstance(created, BadInput):
        raise created
    return created


def _log_start(
    logger: logging.Logger, folder: Path, loop: Any, about: dict[str, Any], resumed: Any
) -> None:
    """Log where the run is written, and what has changed if it is resumed."""
    progress = loop.progress
    if resumed is None:
        logger.info(f"run folder: {folder}")
        return
    logger.info(
        f"continuing {folder} after epoch {progress.epoch}, batch {progress.batch}"
        f" (update {progress.update})"
    )
    saved = resumed["config"]
    settings = about["config"]
    missing = [
        f"{group}.{key}" for group in saved for key in settings[group] if key not in saved[group]
    ]
    if missing:
        logger.warning(
            f"the checkpoint has no {', '.join(missing)}: an older version wrote it, or it was"
            " edited; the default is used"
        )
    before = loop.train.epochs if "train.epochs" in missing else saved["train"]["epochs"]
    if before != loop.train.epochs and loop.components.scheduler is not None:
        logger.warning(
            f"train.epochs changed from {before} to {loop.train.epochs}: from now on the learning"
            f" rate follows the schedule of {loop.train.epochs} epochs, so the run differs from one"
            " that was planned with them"
        )


def _report_interruption(
    logger: logging.Logger, command: str, loop: Any, interrupt: Interrupt
) -> None:
    """Log how to continue the run."""
    progress = loop.progress
    name = "a signal" if interrupt.signal is None else interrupt.signal.name
    logger.warning(
        f"stopped by {name} in epoch {progress.epoch + 1}, after batch {progress.batch} of"
        f" {loop.batches}; continue with: {command}"
    )


def _summary(folder: Path, loop: Any) -> str:
    """Return the last line of a run: its best score, and the next command."""
    progress = loop.progress
    if progress.best_epoch == 0:
        return f"no validation has a score; continue with: {_resume_command(folder)}"
    weights = {"weights": folder}
    best = (
        f"{_best(loop)}; evaluate with: {command_line('eval', weights)}; export with:"
        f" {command_line('export', weights)}"
    )
    if progress.epoch < loop.train.epochs:
        return f"{best}; continue with: {_resume_command(folder, _key_to_raise(loop.ended))}"
    return best


def _best(loop: Any) -> str:
    """Return the best score in words."""
    progress = loop.progress
    if progress.best_epoch == 0:
        return "no validation has a score"
    score = loop.task.format_selection(progress.best, loop.train.best)
    return f"best {score} in epoch {progress.best_epoch}"


def _key_to_raise(ended: str) -> dict[str, str]:
    """Return the setting that ended a run, to be raised by the user; none if there is none."""
    keys = ("train.patience", "train.max_time")
    return {key: "<more>" for key in keys if f"{key}=" in ended}


def _command_to_continue(folder: Path, cell: run_folder.CellRun | None) -> str:
    return _resume_command(folder) if cell is None else cell.command


def _resume_command(folder: Path, more: Mapping[str, str] | None = None) -> str:
    words = [f"{key}={value}" for key, value in (more or {}).items()]
    return " ".join([command_line("train", {"train.resume": folder}), *words])


@contextlib.contextmanager
def _determinism(enabled: bool) -> Iterator[None]:
    """Inside the context, raise an error for operators that are not reproducible."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
