"""`zoo prune`: cut a trained model until it meets a measured latency."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.commands import resolve
from zoo.compression import calibration
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput, BadWeights, unknown_value
from zoo.factory import create_model
from zoo.importance import check_score
from zoo.progress import phase
from zoo.pruning.allocation import ALLOCATIONS
from zoo.pruning.prune import Pruned, prune
from zoo.pruning.table import MachineTimer, Timer
from zoo.quoting import command_line
from zoo.settings import PruneConfig, PruneRun
from zoo.training import checkpoint, logs, run_data, run_folder
from zoo.training.builders import check_forward, open_evaluation_data
from zoo.training.checks import check_value
from zoo.training.disk import atomic_file
from zoo.training.losses import create_loss
from zoo.training.tasks import Result, get_task
from zoo.weights import load_content

REPORT = "pruning.json"
BATCH = 64  # images per call


def run(settings: PruneRun, explicit: resolve.Explicit) -> Path:
    """Prune the model of a run, and write a run folder with the narrower one.

    Args:
        settings: The settings of `zoo prune`.
        explicit: Keys that the user set. Model and data are otherwise those of the run.

    Returns:
        The new folder.

    Raises:
        ZooError: A setting is invalid, the latency cannot be reached, or the result is not faster;
            nothing was written.
    """
    _check(settings.prune)
    timer = create_timer(settings.prune)
    with phase("reading the weights"):
        saved = _read(settings)
    shares = _trained_shares(settings.prune, saved)
    settings, arguments = resolve.describe_model(settings, saved, explicit)
    out = settings.prune.out or checkpoint.folder_of(saved.path).parent
    run_folder.check_writable(out, "prune.out")
    with logs.data_warnings(logs.make_console()), phase("opening the data"):
        data = _open_data(settings, saved)
    name = arguments["name"]
    with phase(f"building {name}"):
        model = create_model(**arguments)
        load_content(model, saved.content, saved.source)
        model.eval()
        check_forward(model, name, data)
    task = get_task(data.task)
    loss = create_loss(task.loss, task=data.task)
    pruned = prune(
        model,
        (1, data.in_chans, *data.image_size),
        settings.prune,
        timer,
        lambda: calibration.calibration(data, settings.prune.images),
        loss,
        shares=shares,
    )
    with phase("evaluating"):
        before, after = (_evaluated(net, data) for net in (model, pruned.model))
    folder = _write(settings, saved, Path(out), pruned, before, after)
    _show(folder, settings, name, pruned, before, after)
    return folder


def create_timer(settings: PruneConfig) -> Timer:
    """Return what measures latencies: this machine."""
    return MachineTimer(settings.runtime, settings.threads)


def _check(settings: PruneConfig) -> None:
    if settings.allocation not in ALLOCATIONS:
        raise BadInput(unknown_value("prune.allocation", settings.allocation, ALLOCATIONS))
    check_score(settings.score, "prune.score")
    ms = settings.latency_ms
    if ms is None and settings.allocation != "zeros":
        raise BadInput("prune.latency_ms is not set; give the largest latency of one image in ms")
    if ms is not None:
        check_value("prune.latency_ms", ms, ms > 0, "more than 0")
    check_value("prune.threads", settings.threads, settings.threads >= 1, "at least 1")
    check_value("prune.images", settings.images, settings.images >= 1, "at least 1")


def _trained_shares(settings: PruneConfig, saved: resolve.SavedWeights) -> list[float]:
    """Return `train.elastic` of the run.

    Raises:
        BadInput: Nested networks are wanted, and the run did not train any, or was cut since.
    """
    trained = saved.groups.get("train", {}).get("elastic") or []
    if "progress" not in saved.content:  # the result of zoo prune
        trained = []
    if settings.allocation == "nested" and not trained:
        raise BadInput(
            f"prune.allocation=nested: {saved.source} was trained without train.elastic, so its"
            " first hidden channels are not a network; choose another prune.allocation"
        )
    return trained


def _read(settings: PruneRun) -> resolve.SavedWeights:
    """Return the checkpoint of a run."""
    saved = resolve.read_command_weights(settings)
    if saved is None:
        raise BadInput("weights is not set; give a run folder or a checkpoint of zoo train")
    if not saved.is_run:
        raise BadWeights(
            f"weights={saved.source} is not a checkpoint of zoo train; train the model on your data"
            " first (model.checkpoint_path takes these weights), then prune the run"
        )
    if saved.is_qat:
        raise BadWeights(
            f"weights={saved.source} comes from train.qat; prune the float run, then use train.qat"
        )
    return saved


def _open_data(settings: PruneRun, saved: resolve.SavedWeights) -> ImageData:
    return open_evaluation_data(
        settings.data,
        BATCH,
        saved.preprocessing,
        source=saved.source,
        num_classes=saved.num_classes,
        class_names=saved.class_names,
        saved_split=run_data.saved_split(
            checkpoint.folder_of(saved.path), saved.groups.get("data"), settings.data
        ),
    )


def _evaluated(model: nn.Module, data: ImageData) -> Result:
    forward = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return get_task(data.task).validate(
        forward,
        data.val_dataloader(),
        data,
        torch.device("cpu"),
        memory_format=torch.channels_last,
    )


def _write(
    settings: PruneRun,
    saved: resolve.SavedWeights,
    out: Path,
    pruned: Pruned,
    before: Result,
    after: Result,
) -> Path:
    """Write the folder: the checkpoint, its settings and the report."""
    widths = _joined(saved.model.get("widths") or {}, pruned.widths)
    config = copy.deepcopy(saved.groups)
    if "model" in config:
        kwargs = {**config["model"].get("kwargs", {}), "widths": widths}
        plain = {"pretrained": False, "checkpoint_path": None}
        config["model"] = {**config["model"], "kwargs": kwargs, **plain}
    content: dict[str, Any] = {
        "state_dict": pruned.model.state_dict(),
        "model": {**saved.model, "widths": widths},
        "data": saved.content["data"],
        "versions": run_folder.versions(),
        "metrics": after.metrics(),
        **({"config": config} if config else {}),
    }
    folder = run_folder.create(out, f"{saved.model['name']}_pruned")
    checkpoint.save(content, folder / "checkpoints" / "best.ckpt")
    checkpoint.duplicate(folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "last.ckpt")
    run_folder.describe(folder, config)
    report = {
        "weights": saved.source,
        "prune": dataclasses.asdict(settings.prune),
        "widths": widths,
        "comparison": pruned.comparison.to_dict(),
        "measured": pruned.measured,
        "metrics": {"before": before.metrics(), "after": after.metrics()},
    }
    with atomic_file(folder / REPORT, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
    return folder


def _joined(earlier: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """Return the widths of a model that was pruned again."""
    joined = {**earlier, **now}
    dropped = [f"{name}." for name, width in joined.items() if width == 0]
    return {name: w for name, w in joined.items() if not name.startswith(tuple(dropped))}


def _show(
    folder: Path,
    settings: PruneRun,
    name: str,
    pruned: Pruned,
    before: Result,
    after: Result,
) -> None:
    found, prune = pruned.comparison, settings.prune
    count = sum(p.numel() for p in pruned.model.parameters())
    dropped = sum(width == 0 for width in pruned.widths.values())
    interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    print(
        f"{name} in {prune.runtime}: {found.a.p50:.3g} ms before, {found.b.p50:.3g} ms now, ratio"
        f" {found.ratio:.3f}{interval} over {found.n} pairs of calls"
    )
    blocks = f", {dropped} blocks dropped" if dropped else ""
    print(f"{len(pruned.widths) - dropped} widths cut{blocks}; {count:,} parameters are left")
    print(f"before: {before.summary()}")
    print(f"now, without training: {after.summary()}")
    print(f"written to {folder}: checkpoints/best.ckpt, {REPORT}")
    data = {"data": settings.data.name}
    if settings.data.root is not None:
        data["data.root"] = settings.data.root
    train = {"model": name, "model.checkpoint_path": folder, **data}
    print(f"next: {command_line('train', train)}")
    print(f"next: {command_line('export', {'weights': folder})}")
