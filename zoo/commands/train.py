"""`train.py`: train a model, resume a run, or continue one with quantisation-aware training."""

from pathlib import Path
from typing import Any

from zoo.commands import resolve
from zoo.settings import TrainRun
from zoo.training import run_folder
from zoo.training.checks import check_train


def run(settings: TrainRun, explicit: resolve.Explicit) -> Path:
    """Train a model, and log the progress.

    Args:
        settings: The settings of `train.py`.
        explicit: Keys that the user set. With `train.resume` and `train.qat`, all other keys come
            from the saved run.

    Returns:
        The run folder.

    Raises:
        ZooError: A setting is invalid (nothing was written), or training diverged.
        SystemExit: Ctrl-C or SIGTERM; the run can be resumed.
    """
    check_train(settings.train)
    if settings.train.resume is None:
        run_folder.check_writable(settings.train.out, "train.out")
        resumed = None
    else:
        settings, resumed = _resume(settings, explicit)
    method = None
    if settings.train.qat:
        from zoo.training.qat import QuantizationAwareTraining

        method = QuantizationAwareTraining()
        if resumed is None:
            settings = _start_qat(settings, explicit)
    from zoo.training.fit import train  # slow to import: check the settings first

    return train(settings, resumed, method)


def _resume(settings: TrainRun, explicit: resolve.Explicit) -> tuple[TrainRun, dict[str, Any]]:
    """Return the settings that continue a run, and the content and path of its checkpoint."""
    from zoo.training import checkpoint

    content, path = checkpoint.load(str(settings.train.resume))
    run_folder.check_writable(path.parent, "train.resume")
    settings = resolve.resume(settings, content["config"], explicit, path)
    check_train(settings.train)
    return settings, {**content, "path": path}


def _start_qat(settings: TrainRun, explicit: resolve.Explicit) -> TrainRun:
    """Return the settings with the model and the data of the run to start from."""
    from zoo.training import qat

    qat.check_start(settings.model)
    if settings.model.checkpoint_path is None:
        return settings
    saved = resolve.read_weights(settings.model.checkpoint_path)
    qat.check_float(saved.source, saved.is_qat)
    return resolve.start_from(settings, saved, explicit)
