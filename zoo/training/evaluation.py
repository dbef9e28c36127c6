"""Evaluate a model or an artefact on a data set, print the result and write the report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.training import logs, report_files, run_folder
from zoo.training.tasks import Forward, get_task


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
    """

    forward: Forward
    data: Any
    device: torch.device
    about: dict[str, Any]
    title: str
    unavailable: tuple[str, ...] = field(default=())
    memory_format: torch.memory_format = torch.contiguous_format


def evaluate_on(target: EvaluationTarget, out: Path) -> dict[str, Any]:
    """Evaluate a target on the validation images, print the result and write it to `out`.

    Returns:
        The content of `report.json`.
    """
    console = logs.make_console()
    data, device = target.data, target.device
    task = get_task(data.task)
    console.print(data.describe(), markup=False)
    result = task.validate(
        target.forward, data.val_dataloader(), data, device, memory_format=target.memory_format
    )
    report = {
        **target.about,
        "data": data.config.name,
        "preprocessing": data.eval_preprocessing(),
        **task.report(result, data),
        **dict.fromkeys(target.unavailable),
        "versions": run_folder.versions(),
    }

    def write_files(folder: Path) -> None:
        task.write(folder, report)
        task.draw(folder, target.forward, data, device)

    report_files.write_report(out, report, write_files)
    task.show(console, f"{target.title} on {data.config.name}", report)
    console.print(f"written to {out}", markup=False)
    return report
