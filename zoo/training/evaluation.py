"""Evaluate a model or an artefact on a data set, print the result and write the report."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.deploy import views
from zoo.progress import phase, track
from zoo.training import checkpoint, confidence, logs, report_files, run_folder
from zoo.training.faults import report_machine_faults
from zoo.training.tasks import Forward, NotFinite, Result, Task, get_task


class Diagnosis(Protocol):
    """What looks at the single images of an evaluation."""

    def __call__(self, found: confidence.Predictions) -> dict[str, Any]:
        """Return entries of `report.json`."""
        ...

    def write(self, folder: Path, report: dict[str, Any], title: str) -> None:
        """Write files about what was found."""
        ...


@dataclass(frozen=True)
class EvaluationTarget:
    """A model or an artefact, and the data to evaluate it on.

    Attributes:
        forward: Maps images N C H W on `device` to outputs.
        data: The data module, after `setup`.
        device: The device of the images.
        about: First entries of the report, which identify the model.
        title: Name in the printed result.
        unavailable: Metrics that its outputs do not allow; they are None in the report.
        memory_format: Memory format of the images.
        next_commands: Commands to print at the end.
        tta: `"flip"` averages the predictions with those of mirrored images.
        diagnosis: Looks at the single images; only called for classifiers with logits.
    """

    forward: Forward
    data: Any
    device: torch.device
    about: dict[str, Any]
    title: str
    unavailable: tuple[str, ...] = field(default=())
    memory_format: torch.memory_format = torch.contiguous_format
    next_commands: Sequence[str] = ()
    diagnosis: Diagnosis | None = None
    tta: str = "none"


def evaluate_on(target: EvaluationTarget, out: Path) -> dict[str, Any]:
    """Evaluate a target on the validation images, print the result and write it to `out`.

    Returns:
        The content of `report.json`.
    """
    console = logs.make_console()
    data, device = target.data, target.device
    task = get_task(data.task)
    console.print(data.describe(), markup=False)
    views.check("tta", target.tta, data.task)
    if target.tta != "none":
        forward = mirrored(target.forward, data.task)
        about = {**target.about, "tta": target.tta}
        target = dataclasses.replace(target, forward=forward, about=about)
    found = confidence.Predictions(target.forward)
    result = _measured(task, target, found)
    has_shares = data.task == "classification" and "loss" not in target.unavailable
    calibration = confidence.calibration(found.logits, found.targets) if has_shares else None
    diagnosis = target.diagnosis if has_shares else None
    report = {
        **target.about,
        "data": data.config.name,
        "preprocessing": data.eval_preprocessing(),
        **task.report(result, data),
        **({} if calibration is None else {"calibration": calibration}),
        **({} if diagnosis is None else diagnosis(found)),
        **dict.fromkeys(target.unavailable),
        "versions": run_folder.versions(),
    }

    title = f"{target.title} on {data.config.name}"

    def write_files(folder: Path) -> None:
        task.write(folder, report)
        if has_shares:
            confidence.write_images(folder, found, data)
        if diagnosis is not None:
            diagnosis.write(folder, report, title)
        task.draw(folder, target.forward, data, device, title)

    with (
        phase("writing the report"),
        report_machine_faults(memory=_MORE_MEMORY, loader=_FEWER_WORKERS, folder=out),
    ):
        files = report_files.write_report(out, report, write_files)
    task.show(console, title, report)
    if calibration is not None:
        console.print(
            f"calibration error {calibration['ece']:.2%}; with temperature"
            f" {calibration['temperature']:.3g}: {calibration['ece_with_temperature']:.2%}"
        )
    if diagnosis is not None:
        console.print(f"page: {out / 'report.html'}", markup=False)
    console.print(f"written to {out}: {', '.join(files)}", markup=False)
    for command in target.next_commands:
        console.print(f"next: {command}", markup=False)
    return report


def mirrored(forward: Forward, task: str) -> Forward:
    """Return a function that also predicts for the mirrored images, and averages.

    Args:
        forward: Maps images N C H W to logits N K.
        task: `"classification"` or `"multi-label"`.
    """

    def both(images: Tensor) -> Tensor:
        first, second = forward(images), forward(images.flip(3))
        a, b = (outputs.float().cpu().numpy() for outputs in (first, second))
        return torch.from_numpy(views.mean_logits(a, b, task)).to(first.device)

    return both


_MORE_MEMORY = "lower batch_size, data.image_size or data.num_workers"
_FEWER_WORKERS = "use fewer processes: data.num_workers=<fewer, 0 for none>"


def _measured(task: Task, target: EvaluationTarget, found: confidence.Predictions) -> Result:
    """Return the metrics; raise an error that names the weights if its outputs are not finite."""
    data, weights = target.data, target.about.get("artefact") or target.about.get("weights")
    try:
        with report_machine_faults(memory=_MORE_MEMORY, loader=_FEWER_WORKERS):
            batches = track(data.val_dataloader(), "evaluating batches")
            is_kept = data.task == "classification"  # other outputs would fill the memory
            return task.validate(
                found if is_kept else target.forward,
                found.noted(batches) if is_kept else batches,
                data,
                target.device,
                memory_format=target.memory_format,
            )
    except NotFinite as error:
        raise NotFinite(f"{weights}: {error}; {_reason(target)}") from error


def _reason(target: EvaluationTarget) -> str:
    """Return why outputs may be NaN or infinite, and what to do."""
    if isinstance(target.forward, nn.Module):
        state = target.forward.state_dict()
        wrong = [name for name, value in state.items() if not checkpoint.all_finite([value])]
        if wrong:
            more = f" and {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
            return (
                f"{wrong[0]}{more} of the weights are NaN or infinite: they are damaged, or their"
                " training diverged; give other weights"
            )
    return f"check data.mean={target.data.mean} and data.std={target.data.std}, or the weights"
