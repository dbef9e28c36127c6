"""`benchmark.py`: count and time models in the requested runtimes and sizes."""

from pathlib import Path

from zoo.commands import resolve
from zoo.profiling.plan import make_plan
from zoo.profiling.sweep import new_folder, sweep
from zoo.reports.records import Record
from zoo.settings import BenchmarkRun


def run(settings: BenchmarkRun, explicit: resolve.Explicit) -> list[Record]:
    """Measure the models, print the table, and write the records.

    Args:
        settings: Everything that `benchmark.py` reads.
        explicit: Not used, because there are no saved settings to merge.

    Raises:
        ZooError: A setting is invalid. Or, after all other models were measured: an operator has no
            counting rule, or a model cannot be measured; the table shows which.
    """
    arguments = resolve.model_arguments(settings.model)
    name = arguments.pop("name")
    plan = make_plan(settings.models or [name], arguments, settings.profile)
    out = settings.profile.out or new_folder(plan.models)
    return sweep(plan, Path(out).expanduser())
