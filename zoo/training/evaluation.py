"""What is judged on a data set, whatever it is, and what is written and said of that."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.training import records, report, run_folder
from zoo.training.tasks import Forward, get_task


@dataclass(frozen=True)
class EvaluationTarget:
    """A model or an artefact, beside the data that it is judged on.

    Attributes:
        forward: Images, N C H W -> outputs; on `device`.
        data: The datamodule, after `setup`.
        device: Where images are put.
        about: What the report says of it, first.
        title: What it is called on the screen.
        class_names: Those it was trained with, as far as they are known.
        unknown: Figures of the task that its outputs do not tell.
        memory_format: Layout of the images.
    """

    forward: Forward
    data: Any
    device: torch.device
    about: dict[str, Any]
    title: str
    class_names: Sequence[str] | None = None
    unknown: tuple[str, ...] = field(default=())
    memory_format: torch.memory_format = torch.contiguous_format


def evaluate_on(target: EvaluationTarget, out: Path) -> dict[str, Any]:
    """Run a target over the validation images; print the result and write it to `out`.

    Returns:
        What `report.json` holds.
    """
    console = records.make_console()
    data, device = target.data, target.device
    task = get_task(data.task)
    found = task.validate(
        target.forward, data.val_dataloader(), data, device, memory_format=target.memory_format
    )
    if target.class_names is not None and list(target.class_names) != data.class_names:
        console.print("warning: the classes of the data are named otherwise than in training")
    result = {
        **target.about,
        "data": data.config.name,
        "preprocessing": data.eval_preprocessing(),
        **task.report(found, data),
        **dict.fromkeys(target.unknown),
        "versions": run_folder.versions(),
    }

    def fill(folder: Path) -> None:
        task.write(folder, result)
        task.draw(folder, target.forward, data, device)

    report.write(out, result, fill)
    task.show(console, f"{target.title} on {data.config.name}", result)
    console.print(f"written to {out}", markup=False)
    return result
