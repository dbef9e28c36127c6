"""`train(cfg)`: everything from a configuration to a trained run folder."""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.errors import BadInput
from zoo.training import overrides as command_line
from zoo.training import run_folder
from zoo.training.checks import PRECISIONS, check_train
from zoo.training.interrupt import EXIT_CODES, Interrupt
from zoo.training.memory import keep_freed_memory


def train(cfg: DictConfig, overrides: Sequence[str] | None = None) -> Path:
    """Train a model; print and record how it goes.

    Args:
        cfg: The configuration of `train.py`.
        overrides: What of it was asked for; by default what the command line says. It matters for
            `train.resume`, where everything else is the saved configuration's.

    Returns:
        The run folder.

    Raises:
        ZooError: Something in `cfg` cannot work; nothing was written. Or the training diverged.
        SystemExit: Ctrl-C or SIGTERM; the run can be resumed.
    """
    check_train(cfg.train)
    if overrides is None:
        overrides = command_line.from_command_line()
    resumed = None
    if cfg.train.resume is not None:
        cfg, resumed = _resume(cfg, overrides)
        check_train(cfg.train)
    else:
        run_folder.check_writable(cfg.train.out, "train.out")
        if cfg.train.qat:
            from zoo.training import qat

            cfg = qat.started(cfg, overrides)
    with Interrupt() as interrupt, _determinism(cfg.train.deterministic):
        return _train(cfg, resumed, interrupt)


def _resume(cfg: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Return the configuration to go on with, and the checkpoint."""
    from zoo.config import TrainRun
    from zoo.training import checkpoint, resume

    content, path = checkpoint.load(cfg.train.resume)
    run_folder.check_writable(path.parent, "train.resume")
    asked = command_line.asked(cfg, overrides, TrainRun)
    cfg = resume.continued(cfg, content["config"], asked, path)
    return cfg, {**content, "path": path}


def _train(cfg: DictConfig, resumed: dict[str, Any] | None, interrupt: Interrupt) -> Path:
    from zoo.training import checkpoint, records, resume
    from zoo.training.loop import Interrupted, Loop

    fabric = _launch(cfg.train)
    console = records.make_console()
    logger = records.make_logger(console, fabric.is_global_zero)
    parts = _build(cfg, fabric, logger, resumed)
    if resumed is not None:
        resume.check_place(
            resumed["progress"], fabric.world_size, cfg.train.epochs, resumed["path"]
        )
    found = checkpoint.folder_of(resumed["path"]) if resumed is not None else None
    folder = _agree_on_folder(fabric, cfg, found)
    own = folder if fabric.is_global_zero else None
    if own is not None:
        run_folder.describe(own, cfg)
    loop = Loop(fabric, parts, cfg.train, own, logger)
    if resumed is not None:
        loop.restore(resumed)
    place = loop.place
    book = records.Records(own, cfg.train.loggers, place.epoch, place.update)
    total = loop.batches * cfg.train.epochs
    done = loop.batches * place.epoch + place.batch
    with (
        contextlib.closing(book),
        records.kept_in(logger, None if own is None else own / "train.log"),
        records.Bar(console, total, done, cfg.train.progress and own is not None) as bar,
    ):
        _announce(logger, folder, loop, parts.about, resumed)
        try:
            loop.run(book, bar, interrupt)
        except Interrupted:
            _leave(logger, folder, loop, interrupt)
        logger.info(_summary(folder, loop))
    return folder


def _launch(train: Any) -> Any:
    """Start the processes and return the Fabric that this one works with."""
    from lightning.fabric import Fabric

    devices, nodes = train.devices, train.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started the processes
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices not in ("auto", local):
            raise BadInput(
                f"train.devices={devices} disagrees with torchrun, which started {local}"
            )
        devices, nodes = local, int(os.environ["WORLD_SIZE"]) // local
    elif devices == "auto" and train.accelerator == "cpu":
        devices = 1
    try:
        fabric = Fabric(
            accelerator=train.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=train.strategy,
            precision=PRECISIONS[str(train.precision)],  # type: ignore[arg-type]
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(
            f"train.accelerator={train.accelerator}, train.devices={train.devices}: {first}"
        ) from error
    if fabric.device.type == "cpu":
        keep_freed_memory()
    if train.sync_bn and (fabric.world_size == 1 or fabric.device.type != "cuda"):
        raise BadInput("train.sync_bn=True has an effect only for several processes on GPUs")
    return fabric


def _build(
    cfg: DictConfig, fabric: Any, logger: logging.Logger, resumed: dict[str, Any] | None
) -> Any:
    """Build what the loop works on; everything that can be wrong shows here."""
    import torch
    from lightning.fabric import seed_everything
    from timm.utils import ModelEmaV3

    from zoo.training import freezing, optim, parts, qat
    from zoo.training.loop import Parts

    train = cfg.train
    if train.qat:
        qat.check_processes(fabric.world_size)
    data = parts.build_data(cfg, fabric, resumed)
    seed_everything(train.seed, verbose=False)
    net, arguments = parts.build_model(cfg, data, fresh=resumed is not None)
    if train.qat:
        net = qat.fused(net)
    criterion = parts.build_criterion(train, net, data)
    frozen_norms = freezing.freeze(net, train.freeze)
    if train.sync_bn:
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net = fabric.to_device(net)
    updates = _updates_per_epoch(train, data)
    about = {}
    if train.qat:
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        net = qat.prepare(net, data, resumed is None, layout)
        about[qat.KEY] = qat.facts(net)
    if train.channels_last:
        net = net.to(memory_format=torch.channels_last)
    images = train.batch_size * train.accumulate * fabric.world_size
    lr = optim.scaled_lr(train, images)
    optimizer = optim.create_optimizer(net, train, lr)
    scheduler = optim.create_scheduler(optimizer, train, updates)
    ema = None
    if train.ema_decay > 0:
        ema = ModelEmaV3(net, decay=train.ema_decay, use_warmup=train.ema_warmup)
    forward, wrapped = fabric.setup(torch.compile(net) if train.compile else net, optimizer)
    logger.info(
        f"lr {lr:.3g} = {train.lr:g} for {train.lr_base_batch} images an update, scaled"
        f" ({train.lr_scale}) to {images} = {train.batch_size} a batch x {train.accumulate}"
        f" accumulated x {fabric.world_size} processes"
    )
    return Parts(
        data=data,
        net=net,
        forward=forward,
        optimizer=wrapped,
        scheduler=scheduler,
        criterion=fabric.to_device(criterion),
        mixing=parts.build_mixing(train, data.num_classes),
        ema=ema,
        frozen_norms=frozen_norms,
        ranges_follow=qat.ranges_follow(updates * train.epochs) if train.qat else None,
        about={
            **about,
            "model": arguments,
            "data": {
                "num_classes": data.num_classes,
                "class_names": data.class_names,
                "preprocessing": data.eval_preprocessing(),
            },
            "config": OmegaConf.to_container(cfg, resolve=True),
            "versions": run_folder.versions(),
        },
    )


def _updates_per_epoch(train: Any, data: Any) -> int:
    batches = len(data.train_dataloader())
    batches = min(batches, train.limit_train_batches or batches)
    if train.accumulate > batches:
        raise BadInput(
            f"train.accumulate={train.accumulate} is more than the {batches} batches of an epoch"
        )
    return -(-batches // train.accumulate)


def _agree_on_folder(fabric: Any, cfg: DictConfig, found: Path | None) -> Path:
    """Return the run folder, which the first process makes unless it exists already."""
    if found is not None:
        return found
    made: Any = None
    if fabric.is_global_zero:
        try:
            made = run_folder.create(cfg.train.out, cfg.model.name)
        except BadInput as error:  # the others must hear of it
            made = error
    made = fabric.broadcast(made)
    if isinstance(made, BadInput):
        raise made
    return made


def _announce(
    logger: logging.Logger, folder: Path, loop: Any, about: dict[str, Any], resumed: Any
) -> None:
    data, place = loop.parts.data, loop.place
    parameters = list(loop.parts.net.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    logger.info(
        f"{about['model']['name']}: {sum(p.numel() for p in parameters):,} parameters"
        f" ({trained:,} trained); {about['config']['data']['name']}: {loop.task.target(data)},"
        f" {'x'.join(map(str, data.shape))}, {loop.batches} batches an epoch;"
        f" on {loop.fabric.world_size} x {loop.fabric.device.type}, {loop.train.precision} bit"
    )
    if resumed is not None:
        logger.info(
            f"going on with {folder} after epoch {place.epoch}, batch {place.batch}"
            f" (update {place.update})"
        )
        before = resumed["config"]["train"]["epochs"]
        if before != loop.train.epochs and loop.parts.scheduler is not None:
            logger.warning(
                f"train.epochs was {before} and is {loop.train.epochs} now: the learning rate goes"
                " on as in a run planned that long, which the epochs so far were not"
            )
    else:
        logger.info(f"run folder: {folder}")


def _leave(logger: logging.Logger, folder: Path, loop: Any, interrupt: Interrupt) -> None:
    place = loop.place
    name = "a signal" if interrupt.signal is None else interrupt.signal.name
    logger.warning(
        f"stopped by {name} in epoch {place.epoch + 1}, after batch {place.batch} of"
        f" {loop.batches}; go on with: {_resume_command(folder)}"
    )
    sys.exit(EXIT_CODES.get(interrupt.signal, 1) if interrupt.signal is not None else 1)


def _summary(folder: Path, loop: Any) -> str:
    place = loop.place
    best = (
        f"best {loop.task.best(place.best)} in epoch {place.best_epoch}; evaluate with:"
        f" python eval.py weights={shlex.quote(str(folder))}"
    )
    if place.epoch < loop.train.epochs:
        return f"{best}; go on with: {_resume_command(folder)}"
    return best


def _resume_command(folder: Path) -> str:
    return f"python train.py train.resume={shlex.quote(str(folder))}"


@contextlib.contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Refuse operators that are not reproducible, while entered."""
    if not wanted:
        yield
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
