"""`train.py`: train a model, resume a run, or continue one with quantisation-aware training."""

from typing import TYPE_CHECKING

from zoo.commands import resolve
from zoo.settings import TrainRun
from zoo.training import run_folder
from zoo.training.checks import check_train

if TYPE_CHECKING:
    from zoo.training.method import TrainingMethod


def run(settings: TrainRun, explicit: resolve.Explicit) -> run_folder.TrainedRun | None:
    """Train a model, and log the progress.

    Args:
        settings: The settings of `train.py`.
        explicit: Keys that the user set. With `train.resume` and `train.qat`, all other keys come
            from the saved run.

    Returns:
        The run folder, with its best score as `score`, which a sweeper of Hydra maximises;
        None after a dry run.

    Raises:
        ZooError: A setting is invalid (nothing was written), or training diverged.
        SystemExit: Ctrl-C or SIGTERM; the run can be resumed.
    """
    start = resolve.training_start(settings, explicit)
    check_train(start.settings.train)
    if start.resumed is None:
        run_folder.check_writable(start.settings.train.out, "train.out")
        resumed = None
    else:
        run_folder.check_writable(start.resumed.path.parent, "train.resume")
        resumed = {**start.resumed.content, "path": start.resumed.path}
    method = create_method(start.settings)
    from zoo.training.fit import train  # slow to import: check the settings first

    return train(start.settings, resumed, method, normalisation=start.normalisation)


def create_method(settings: TrainRun) -> "TrainingMethod | None":
    """Return the training method that the resolved settings choose; None for ordinary training."""
    if settings.train.qat:
        from zoo.training.qat import QuantizationAwareTraining

        return QuantizationAwareTraining(settings.model)
    if settings.train.adapt != "none":
        from zoo.training.adaptation import Adaptation

        return Adaptation(settings.model, settings.train)
    return None
