"""What the folder of a run says about its model: accuracy, recipe, latency and pictures."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zoo.display import ms
from zoo.errors import BadInput
from zoo.reports import figures, records
from zoo.reports.claims import plus_minus
from zoo.settings import DataConfig, ModelConfig, TrainConfig
from zoo.training.classification import confidence_interval

# Metrics by their names in a report: words, and whether they are shares of images.
_METRICS = {
    "top1": ("top-1", True),
    "top5": ("top-5", True),
    "mean_iou": ("mean IoU", False),
    "pixel_accuracy": ("pixel accuracy", False),
    "map": ("mAP", False),
    "map_50": ("mAP50", False),
    "map_75": ("mAP75", False),
    "recall_1": ("recall@1", False),
    "recall_5": ("recall@5", False),
    "psnr": ("PSNR in dB", False),
    "ssim": ("SSIM", False),
    "bicubic_psnr": ("PSNR in dB of bicubic interpolation", False),
    "bilateral_psnr": ("PSNR in dB of bilateral filtering", False),
    "bicubic_ssim": ("SSIM of bicubic interpolation", False),
}
# Settings of the machine and of the folders, which do not change what is learnt.
_NOT_OF_THE_RECIPE = {
    "model": ("name", "pretrained", "checkpoint_path", "num_classes", "in_chans"),
    "data": ("name", "root", "download", "class_names", "num_workers", "cache", "image_size"),
    "train": (
        *("out", "loggers", "log_every", "progress", "resume", "stop_at_epoch", "accelerator"),
        *("devices", "num_nodes", "strategy", "distill_teacher_weights", "channels_last"),
    ),
}
_ALWAYS = (
    *("train.epochs", "train.batch_size", "train.optimizer", "train.lr", "train.weight_decay"),
    *("train.scheduler", "train.warmup_epochs", "train.precision", "train.seed"),
)


@dataclass(frozen=True)
class Metric:
    """One result of an evaluation.

    Attributes:
        key: Its name in a report.
        words: Its name in a table.
        value: A share from 0 to 1, or a plain value.
        interval: The 95 % interval of a share of images; None if there is none.
    """

    key: str
    words: str
    value: float
    interval: tuple[float, float] | None = None

    def cells(self) -> list[str]:
        """Return the name, the value and the interval as texts."""
        if self.key not in ("top1", "top5", "pixel_accuracy"):
            return [self.words, f"{self.value:.4g}", ""]
        ends = [f"{100 * end:.2f}" for end in self.interval or ()]
        return [self.words, f"{100 * self.value:.2f} %", " to ".join(ends) + " %" if ends else ""]


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of a model.

    Attributes:
        metrics: The results.
        images: Number of images; None if unknown.
        during_training: Whether it is the validation that chose the checkpoint.
    """

    metrics: list[Metric]
    images: int | None
    during_training: bool


def evaluation(folder: Path, content: Mapping[str, Any], checkpoint: Path) -> Evaluation:
    """Return the accuracy of a checkpoint: of `zoo eval` if it was run since, else of training.

    Args:
        folder: The run folder.
        content: The checkpoint.
        checkpoint: Its file; reports that are older belong to another one.
    """
    data = content.get("config", {}).get("data", {}).get("name")
    for file, report in _reports(folder):
        if report.get("data") == data and file.stat().st_mtime >= checkpoint.stat().st_mtime:
            images = report.get("images")
            images = images if type(images) is int else None
            return Evaluation(list(_metrics(report, None)), images, during_training=False)
    found = {key.removeprefix("val/"): v for key, v in content.get("metrics", {}).items()}
    images = _validated_images(content)
    return Evaluation(list(_metrics(found, images)), images, during_training=True)


def _reports(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the reports on the weights of a run, from the newest."""
    files = sorted(folder.glob("eval_*/report.json"), key=lambda file: -file.stat().st_mtime)
    for file in files:
        try:
            report = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(report, dict) and "weights" in report and not report.get("fused"):
            yield file, report


def _metrics(found: Mapping[str, Any], images: int | None) -> Iterator[Metric]:
    for key, (words, is_share) in _METRICS.items():
        entry = found.get(key)
        value: Any = entry.get("value") if isinstance(entry, Mapping) else entry
        if type(value) not in (int, float):
            continue
        interval = None
        if isinstance(entry, Mapping):
            ends = (entry.get("low"), entry.get("high"))
            interval = ends if all(type(end) in (int, float) for end in ends) else None
        elif is_share and images and 0 <= value <= 1:
            interval = confidence_interval(value, images)
        yield Metric(key, words, value, interval)  # pyright: ignore[reportArgumentType]


def _validated_images(content: Mapping[str, Any]) -> int | None:
    """Return how many images a validation of the run used."""
    images = content["data"].get("splits", {}).get("val", {}).get("images")
    train = content.get("config", {}).get("train", {})
    limit, batch = train.get("limit_val_batches"), train.get("batch_size")
    if images is None or limit is None:
        return images
    return min(images, limit * batch * content.get("progress", {}).get("world_size", 1))


def recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of training: the usual ones, and those that differ from the defaults.

    Names of folders and files are left out.
    """
    config = content.get("config", {})
    found: dict[str, Any] = {}
    for group, schema in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig)):
        defaults = schema()
        for entry in fields(schema):
            name = f"{group}.{entry.name}"
            value = config.get(group, {}).get(entry.name)
            changed = value is not None and value != getattr(defaults, entry.name)
            known = name in _ALWAYS and value is not None
            if (changed or known) and entry.name not in _NOT_OF_THE_RECIPE[group]:
                found[name] = value
    return dict(sorted(found.items(), key=lambda pair: pair[0] not in _ALWAYS))


def latencies(folder: Path, model: str, size: list[int]) -> tuple[list[list[str]], str]:
    """Return rows of measured latencies, and on what they were measured.

    Records in the run folder count; without any, those of the architecture that come with the
    package, for the same image size.
    """
    rows, machines = [], {}
    for file in sorted(folder.rglob("*.jsonl")):
        try:
            found = records.read(file)
        except BadInput:
            continue
        for record in found:
            if record["model"] != model or record["input_size"][1:] != size:
                continue
            fused = {True: "fused", False: "as trained", None: ""}[record.get("fused")]
            times: list[Any] = [record.get(key) for key in ("p50_ms", "low_ms", "high_ms")]
            rows.append([record["runtime"], fused, str(record["input_size"][0]), *_time(*times)])
            machines[(record.get("machine") or {}).get("cpu", "an unnamed processor")] = None
    if rows:
        return rows, ", ".join(map(str, machines))
    known = figures.of(model)
    if not known.ms or figures.size_of(model) != size:
        return [], ""
    rows = [[runtime, "fused", "1", *_time(*times)] for runtime, times in known.ms.items()]
    return rows, f"{figures.measured_on()}, for the same architecture with other weights"


def _time(mid: float, low: float | None, high: float | None) -> list[str]:
    return [ms(mid), plus_minus(mid, low, high)]


def pictures(folder: Path) -> list[Path]:
    """Return the pictures of a run: at its top, and of its evaluations."""
    found = [*folder.glob("*.png"), *folder.glob("eval_*/*.png")]
    return sorted(file for file in found if not file.name.startswith("."))
