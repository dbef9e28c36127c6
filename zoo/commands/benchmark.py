"""`benchmark.py`: count and time every requested model in every requested form."""

from pathlib import Path

from zoo.commands import resolve
from zoo.profiling.plan import make_plan
from zoo.profiling.sweep import new_folder, sweep
from zoo.reports.records import Record
from zoo.settings import BenchmarkRun


def run(settings: BenchmarkRun, explicit: resolve.Explicit) -> list[Record]:
    """Measure, print the table, keep the records.

    Args:
        settings: Everything that `benchmark.py` reads.
        explicit: Keys that the user set; no saved settings override any here.

    Raises:
        ZooError: A setting cannot work; or, at the end, an operator has no rule or a model could
            not be measured: the table says which.
    """
    arguments = resolve.model_arguments(settings.model)
    name = arguments.pop("name")
    plan = make_plan(settings.models or [name], arguments, settings.profile)
    out = settings.profile.out or new_folder(plan.models)
    return sweep(plan, Path(out).expanduser())
