"""`train.py`: train a model, resume a run, or continue one with quantisation-aware training.

With `train.sweep`, one of the workers that train the cells of a folder (`zoo.sweeping`).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.commands import resolve
from zoo.data import presets
from zoo.errors import BadInput
from zoo.quoting import command_line
from zoo.settings import TrainRun
from zoo.sweeping import cells as sweep_cells
from zoo.sweeping.cells import OF_A_MACHINE as OF_A_MACHINE
from zoo.sweeping.cells import Cell
from zoo.sweeping.lease import Turn
from zoo.training import run_folder
from zoo.training.checks import check_train

if TYPE_CHECKING:
    from zoo.training.method import TrainingMethod

# Settings that a sweep decides itself, or that leave its cells unfinished.
_NOT_IN_A_SWEEP = ("resume", "dry_run", "stop_at_epoch", "out")


def run(
    settings: TrainRun, explicit: resolve.Explicit, cell: run_folder.CellRun | None = None
) -> run_folder.TrainedRun | None:
    """Train a model, and log the progress.

    Args:
        settings: The settings of `train.py`.
        explicit: Keys that the user set. With `train.resume` and `train.qat`, all other keys come
            from the saved run.
        cell: The run of a sweep; None for a new run in `train.out`.

    Returns:
        The run folder, with its best score as `score`, which a sweeper of Hydra maximises;
        None after a dry run, and for a cell that was finished already.

    Raises:
        ZooError: A setting is invalid (nothing was written), or training diverged.
        SystemExit: Ctrl-C or SIGTERM; the run can be resumed.
    """
    start = resolve.training_start(settings, explicit)
    check_train(start.settings.train)
    if start.resumed is None:
        if cell is None:
            run_folder.check_writable(start.settings.train.out, "train.out")
        resumed = None
    else:
        run_folder.check_writable(start.resumed.path.parent, "train.resume")
        resumed = {**start.resumed.content, "path": start.resumed.path}
        if cell is not None:
            from zoo.training.stopping import is_finished

            if is_finished(resumed["progress"], start.settings.train):
                return None
    method = create_method(start.settings)
    from zoo.training.fit import train  # slow to import: check the settings first

    return train(start.settings, resumed, method, normalisation=start.normalisation, cell=cell)


def create_method(settings: TrainRun) -> "TrainingMethod | None":
    """Return the training method that the resolved settings choose; None for ordinary training."""
    if settings.train.qat:
        from zoo.training.qat import QuantizationAwareTraining

        return QuantizationAwareTraining(settings.model)
    if settings.train.adapt != "none":
        from zoo.training.adaptation import Adaptation

        return Adaptation(settings.model, settings.train)
    if settings.train.elastic:
        from zoo.training.elastic import Elastic

        return Elastic(settings.train.elastic)
    if settings.train.shrink:
        from zoo.training.shrinking import Shrinking

        return Shrinking(settings.train)
    if settings.train.experts:
        from zoo.training.experts import ExpertsAveraging

        return ExpertsAveraging(settings.train)
    return None


def run_sweep(
    sweep: str, runs: Sequence[tuple[TrainRun, resolve.Explicit]], of_machine: Mapping[str, Any]
) -> Path:
    """Add runs to a sweep, and train its cells together with all other workers.

    Args:
        sweep: The folder of the sweep.
        runs: The settings of each run, and the keys that the user set; none to join a sweep.
        of_machine: Settings of this machine that replace those of the cells.

    Returns:
        The folder of the sweep.

    Raises:
        ZooError: A setting is invalid (nothing was written), or cells could not be trained.
        SystemExit: Ctrl-C or SIGTERM; any worker can go on.
    """
    from zoo.sweeping.worker import work

    folder = Path(sweep).expanduser()
    run_folder.check_writable(folder, "train.sweep")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise BadInput(
            "each worker of train.sweep trains alone; start zoo train several times instead of"
            " torchrun"
        )
    cells = [_cell(folder, settings, explicit) for settings, explicit in runs]
    if not cells and not sweep_cells.cells_of(folder):
        raise BadInput(
            f"train.sweep={sweep} has no cells yet; give the settings, such as"
            " model=mobilenetv2_035,mobilenetv2_050 train.seed=0,1,2"
        )
    new = sum([cell.add() for cell in cells])
    total = len(sweep_cells.cells_of(folder))
    print(f"sweep {folder}: {total} cells" + (f", {new} of them new" if new else ""), flush=True)
    work(folder, lambda cell, turn, resumes: _train_cell(cell, turn, resumes, of_machine))
    print((folder / "table.md").read_text("utf-8"))
    print(f"written to {folder}: table.md, table.csv, cells.csv; the runs are in {folder / 'runs'}")
    return folder


def _cell(folder: Path, settings: TrainRun, explicit: resolve.Explicit) -> Cell:
    """Return the cell of a run.

    Raises:
        BadInput: A setting is invalid, or does not work in a sweep.
    """
    train = settings.train
    for key in _NOT_IN_A_SWEEP:
        if f"train.{key}" in explicit and getattr(train, key):
            raise BadInput(
                f"train.{key}={getattr(train, key)} cannot be used with train.sweep; leave it out"
            )
    if train.devices not in ("auto", 1) or train.num_nodes != 1 or train.strategy != "auto":
        raise BadInput(
            "each worker of train.sweep trains in one process: leave out train.devices,"
            " train.num_nodes and train.strategy, and start a worker for each GPU, with"
            " CUDA_VISIBLE_DEVICES=0, 1, ..."
        )
    train = dataclasses.replace(train, devices=1, sweep=None, out=type(train)().out)
    check_train(train)
    presets.resolve(settings.data)
    groups = {
        "model": dataclasses.asdict(settings.model),
        "data": dataclasses.asdict(settings.data),
        "train": dataclasses.asdict(train),
    }
    return Cell(folder, groups, tuple(sorted(set(explicit) - {"train.sweep"})))


def _train_cell(
    cell: Cell, turn: Turn, resumes: bool, of_machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Train a cell in the folder of its turn, and return how it ended."""
    folder = turn.run_folder
    from zoo import tensor_files
    from zoo.training.divergence import Diverged

    merged = resolve.merge(TrainRun(), cell.settings, of_machine, cell.folder / "cell.json")
    explicit = {key: cell.flat()[key] for key in cell.explicit} | dict(of_machine)
    if resumes:
        train = dataclasses.replace(TrainRun().train, resume=str(folder))
        merged = dataclasses.replace(merged, train=train)
        explicit = {"train.resume": str(folder), **_may_change(of_machine)}
    try:
        command = command_line("train", {"train.sweep": cell.sweep})
        run(merged, explicit, run_folder.CellRun(folder, command, lambda: turn.is_lost))
    except Diverged as error:
        return {"outcome": "diverged", "metrics": {}, "reason": str(error)}
    content = tensor_files.read(folder / "checkpoints" / "last.ckpt")
    return {
        "outcome": "finished",
        "metrics": content["metrics"],
        "epochs": content["progress"]["epoch"],
    }


def _may_change(of_machine: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in of_machine.items() if key in resolve.MAY_CHANGE}
