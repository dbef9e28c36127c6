"""The steps of `zoo fit`. Each one reads what the earlier ones found, and can be repeated."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.commands import eval as evaluation
from zoo.commands import export, resolve, train
from zoo.data import holdout
from zoo.data.datamodule import ImageData
from zoo.deploy import files
from zoo.diagnosis import labels
from zoo.errors import BadInput, ZooError, first_line
from zoo.factory import create_model
from zoo.fitting import inspection
from zoo.inputs import published_input
from zoo.progress import track
from zoo.settings import (
    DataConfig,
    EvalRun,
    ExportConfig,
    ExportRun,
    FitConfig,
    ModelConfig,
    PickConfig,
    QuantizeConfig,
    TrainConfig,
    TrainRun,
)
from zoo.training import run_data
from zoo.training.builders import open_evaluation_data
from zoo.training.disk import atomic_file
from zoo.training.stopping import reason_to_end

MODEL = "mobilenetv2_100"  # small, with published weights, runs everywhere
EPOCHS = {"published": 20, "none": 60}
LEARNING_RATE = {"published": 3e-4, "none": 2e-3}
SPLIT = "split.csv"  # in the folder of the command
LABELS = "labels.csv"  # in the folder of the command
MOST_SUSPECTS = 24  # on the page
TEMPERATURES = (0.05, 20.0)  # beyond these, the model knows nothing and is left as it is
BATCH = 32  # images, for features

Steps = dict[str, Any]
Step = Callable[[FitConfig, Path, Steps], dict[str, Any]]


def inspect(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Read the images, and write which of them are held out."""
    found = inspection.inspect(settings.photos)
    if found.halves is not None:
        by_half = {
            half: sorted(key for key, own in found.halves.items() if own == half)
            for half in ("train", "val")
        }
        holdout.write(folder, by_half)
    name = Path(settings.photos).expanduser().resolve().name
    return {**found.about, "name": name}


def choose(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Choose the model, its image size, its first weights and how it is trained."""
    model, size = settings.model or MODEL, settings.size
    if settings.ms is not None:
        from zoo.picking.pick import pick

        winner = pick(
            PickConfig(ms=settings.ms, runtime=["onnxruntime"], out=str(folder / "pick"))
        )["winner"]
        model, size = winner["model"], winner["input_size"][-1]
    if size is None:
        size = (published_input(model)["size"] or [3, 224])[1]
    data = steps["inspect"]
    weights, reason = settings.weights, ""
    if weights is None:
        weights, reason = first_weights(model, len(data["classes"]))
    kind = "none" if weights == "none" else "published"
    epochs = settings.epochs or EPOCHS[kind]
    return {
        "model": model,
        "image_size": size,
        "weights": weights,
        "reason": reason,
        "epochs": epochs,
        "warmup_epochs": min(1.0, epochs / 4),
        "patience": max(5, epochs // 4),
        "lr": LEARNING_RATE[kind],
        "batch_size": min(16, data["train"]),
        "class_weights": "balanced" if data["is_imbalanced"] else None,
        "best": "macro_f1" if data["is_imbalanced"] else "top1",
    }


def first_weights(model: str, classes: int) -> tuple[str, str]:
    """Return `"published"` if the published weights of a model can be loaded, or `"none"` and why.

    Raises:
        UnknownModel: There is no such model.
    """
    create_model(model, num_classes=classes)  # errors that have nothing to do with the weights
    try:
        create_model(model, num_classes=classes, pretrained=True)
    except ZooError as error:
        return "none", first_line(error).partition(";")[0]  # what to do follows, for others
    return "published", ""


def fine_tune(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Train, or continue the training that was interrupted."""
    out = folder / "train"
    run = _unfinished(out)
    if run is None:
        trained = train.run(*_training(settings, folder, steps))
        assert trained is not None  # no dry run
        run = Path(trained)
    elif not _is_finished(run):
        train.run(TrainRun(train=TrainConfig(resume=str(run))), {"train.resume": str(run)})
    progress = _checkpoint(run)["progress"]
    return {
        "run": str(run.relative_to(folder)),
        "epochs": progress["epoch"],
        "best_epoch": progress["best_epoch"],
        "score": progress["best"],
    }


def _checkpoint(run: Path) -> dict[str, Any]:
    return resolve.read_weights(str(run), resumes=True).content


def _is_finished(run: Path) -> bool:
    content = _checkpoint(run)
    progress, train_config = content["progress"], content["config"]["train"]
    epochs = (progress["epoch"], progress["best_epoch"])
    if progress["epoch"] >= train_config["epochs"]:
        return True
    is_early = reason_to_end(TrainConfig(patience=train_config["patience"]), *epochs, is_over=False)
    return bool(is_early) and progress["batch"] == 0


def _unfinished(out: Path) -> Path | None:
    """Return the run of an earlier command; one without a checkpoint is removed."""
    for run in sorted(out.iterdir()) if out.is_dir() else []:
        if (run / "checkpoints" / "last.ckpt").is_file():
            return run
        shutil.rmtree(run)
    return None


def _training(settings: FitConfig, folder: Path, steps: Steps) -> tuple[TrainRun, dict[str, Any]]:
    """Return the settings of the training, and those that differ from the defaults."""
    chosen, data = steps["choose"], steps["inspect"]
    weights = chosen["weights"]
    groups = {
        "model": {
            "name": chosen["model"],
            "pretrained": weights == "published",
            "checkpoint_path": None if weights in ("published", "none") else weights,
        },
        "data": {
            "name": "folder",
            "root": settings.photos,
            "image_size": chosen["image_size"],
            "split_file": None if data["is_split"] else str((folder / SPLIT).resolve()),
            "skip_corrupt": data["is_split"] and bool(data["broken"]),
        },
        "train": {
            "out": str(folder / "train"),
            **{
                key: chosen[key]
                for key in (
                    *("epochs", "warmup_epochs", "patience", "lr", "batch_size"),
                    *("class_weights", "best"),
                )
            },
        },
    }
    explicit = {
        f"{group}.{key}": value
        for group, values in groups.items()
        for key, value in values.items()
        if value not in (None, False)
    }
    run = TrainRun(
        ModelConfig(**groups["model"]), DataConfig(**groups["data"]), TrainConfig(**groups["train"])
    )
    return run, explicit


def export_float(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Export the best checkpoint to ONNX."""
    return _exported(folder, steps, "onnx")


def export_int8(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Try int8; a model that does not support it is no error."""
    try:
        return _exported(folder, steps, "onnx_int8", int8=True)
    except BadInput:
        raise
    except ZooError as error:
        return {"error": first_line(error)}


def _exported(folder: Path, steps: Steps, name: str, *, int8: bool = False) -> dict[str, Any]:
    run = ExportRun(
        weights=str(folder / steps["train"]["run"]),
        format="onnx",
        export=ExportConfig(out=str(folder / name), overwrite=True),
        quantize=QuantizeConfig(int8=int8),
    )
    (artefact,) = export.run(run, {})
    about = artefact.manifest.get("quantization") or {}
    return {
        "folder": name,
        "artefact": str(artefact.path.relative_to(folder)),
        "bytes": sum(file.stat().st_size for file in _files(artefact.path)),
        **{key: about[key] for key in ("latency", "score") if key in about},
    }


def _files(path: Path) -> list[Path]:
    """Return an artefact, and the file of its weights if they are in a file of their own."""
    return [path, *path.parent.glob(f"{path.name}.data")]


def evaluate(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Evaluate each artefact on the images that were held out."""
    found, times = {}, steps["int8"].get("latency", {})
    for form, step in (("float", "export"), ("int8", "int8")):
        made = steps[step]
        if "error" in made:
            continue
        out = f"eval_{form}"
        report = evaluation.run(
            EvalRun(
                artefact=str(folder / made["folder"]),
                against=str(folder / steps["train"]["run"]),
                out=str(folder / out),
            ),
            {},
        )
        temperature = report["calibration"]["temperature"]
        if TEMPERATURES[0] < temperature < TEMPERATURES[1]:
            files.note_temperature(folder / made["folder"], temperature)
        kept = ("images", "top1", "macro_f1", "macro_recall", "classes", "calibration", "changes")
        found[form] = {
            "artefact": made["artefact"],
            "folder": out,
            "bytes": made["bytes"],
            "p50_ms": times.get(f"{form}_p50_ms"),
            "report": {key: report[key] for key in kept},
        }
    return found


def suspect_labels(settings: FitConfig, folder: Path, steps: Steps) -> dict[str, Any]:
    """Rank all images by how much their label is in doubt, and write the list."""
    run = folder / steps["train"]["run"]
    saved = resolve.read_weights(str(run))
    _, model, _ = export.load_model(ExportRun(weights=str(run)), {}, saved)
    config = DataConfig(**saved.groups["data"])
    data = open_evaluation_data(
        config,
        BATCH,
        saved.preprocessing,
        source=str(run),
        num_classes=saved.num_classes,
        class_names=saved.class_names,
        saved_split=run_data.saved_split(run, saved.groups["data"], config),
    )
    values, numbers, paths = _features(model, data)
    names = data.class_names or []
    root = Path(settings.photos).expanduser()
    rows = [
        {
            "file": os.path.relpath(paths[one.index], root),
            "class": names[numbers[one.index]],
            "suggested": names[one.suggested],
            "confidence": round(one.confidence, 6),
        }
        for one in labels.ranked(values, numbers)
    ]
    with atomic_file(
        folder / LABELS, "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    doubted = [row for row in rows if row["class"] != row["suggested"]]
    return {"file": LABELS, "doubted": len(doubted), "first": doubted[:MOST_SUSPECTS]}


@torch.inference_mode()
def _features(model: Any, data: ImageData) -> tuple[np.ndarray, list[int], list[str]]:
    """Return the features of all images without augmentation, their classes and their files."""
    model.reset_classifier(0)
    values, numbers, paths = [], [], []
    for split in ("train", "val"):
        source = data.source(split)
        numbers += [int(label) for label in source.labels]
        paths += [source.files(index)[0] for index in range(len(source))]
        for images, _ in track(data.eval_dataloader(split), f"features of the {split} images"):
            values.append(model(images).flatten(1).float().numpy())
    return np.concatenate(values), numbers, paths


ALL: dict[str, tuple[str, Step]] = {
    "inspect": ("looking at the images", inspect),
    "choose": ("choosing the model", choose),
    "train": ("training", fine_tune),
    "export": ("exporting", export_float),
    "int8": ("trying int8", export_int8),
    "evaluate": ("evaluating the artefacts", evaluate),
    "labels": ("looking for wrong labels", suspect_labels),
}
