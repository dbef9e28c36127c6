"""The work of `benchmark.py`: count and time each requested model with each requested setting.

Names, settings, sizes and the output file are checked before any model is built. Then each model in
turn is built, counted, timed and freed. Every record is on disk before the next measurement starts,
and cases that are already in the file are skipped, so an interrupted sweep continues where it
stopped.
"""

import contextlib
import itertools
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from zoo import runtimes
from zoo.counting.count import count
from zoo.deploy.pipeline import convert
from zoo.environment import describe_machine, summary, versions
from zoo.errors import BadInput, UncountedOperator, ZooError, first_line
from zoo.factory import create_model
from zoo.profiling import production
from zoo.profiling.latency import compare, measure
from zoo.profiling.layers import profile_layers
from zoo.profiling.plan import Case, Plan
from zoo.profiling.timing import MeasurementBudget
from zoo.progress import phase
from zoo.quoting import command_line, setting, shell
from zoo.reparam import reparameterize
from zoo.reports.records import Record, Results, case_key
from zoo.reports.table import legend, print_all, table

_BUDGET = ("min_runs", "min_time", "max_time")

# The attributes of `zoo.counting.count.Counts` that each record contains, for one image.
_COUNTS = (
    "params",
    "macs",
    "flops",
    "activations",
    "peak_activation_bytes",
    "moved_bytes",
    "intensity",
)


def sweep(plan: Plan, out: Path) -> list[Record]:
    """Measure the cases of a plan that are not yet in `out`.

    Args:
        plan: The cases to measure.
        out: A folder, or a file `<name>.jsonl`, to which records are added.

    Returns:
        One record per case; the record of a case that failed has the key `error`.

    Raises:
        ZooError: At the end, if a model could not be counted or measured.
        SystemExit: The user interrupted the sweep; all finished measurements are saved.
    """
    sweep_run = SweepRun(plan)
    if all(case.refused for case in sweep_run.cases):
        raise BadInput(sweep_run.cases[0].refused)
    results = Results(out)
    measured = {case_key(record): record for record in results.earlier}
    _print_earlier_records(sweep_run, measured, results)
    rows: list[Record] = []
    try:
        with results:
            for record in sweep_run.records(measured):
                rows.append(record)
                if "error" not in record and case_key(record) not in measured:
                    results.add(record)
    except KeyboardInterrupt:
        kept = sum("error" not in row for row in rows)
        print(
            f"interrupted: {kept} of {len(sweep_run.cases)} measurements are in {results.path}; "
            f"run the same command with {shell(setting('profile.out', str(out)))} to continue",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    failures = sweep_run.failures
    if failures and all("error" in row for row in rows) and len(set(failures)) == 1:
        raise BadInput(failures[0])  # a table without results would add nothing
    print_summary(rows, results)
    _raise_if_incomplete(rows)
    return rows


class SweepRun:
    """Measures the cases of a plan, with one model in memory at a time.

    Attributes:
        cases: All cases, in order.
        failures: Error messages of the cases that could not be measured.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cases = plan.cases()
        self.failures: list[str] = []
        self._requested = plan.requested_settings()
        self._base = {"machine": describe_machine(), "versions": versions()}

    def identity(self, case: Case) -> Record:
        """Return the values that identify the record of a case."""
        return {
            "model": case.model,
            "args": self.plan.arguments,
            "input_size": list(case.input_size),
            "fused": case.fused,
            "runtime": case.runtime,
            "asked": self._requested,
            **self._base,
        }

    def records(self, measured: dict[str, Record]) -> Iterator[Record]:
        """Yield the record of each case, from `measured` or from a new measurement."""
        remaining = sum(case_key(self.identity(case)) not in measured for case in self.cases)
        number, console = 0, Console(stderr=True)
        with progress(console) as bar:
            task = bar.add_task("", total=remaining)
            for name, group in itertools.groupby(self.cases, key=lambda case: case.model):
                with _Variants(name, self.plan.arguments) as variants:
                    for case in group:
                        record = measured.get(case_key(self.identity(case)))
                        if record is None:
                            bar.update(task, description=str(case), refresh=True)
                            number += 1
                            # A spinner would take time from the measurement.
                            line = phase(f"measuring {case} ({number} of {remaining})")
                            with contextlib.nullcontext() if console.is_terminal else line:
                                record = self._measure(case, variants)
                            bar.update(task, advance=1, refresh=True)
                        yield record

    def _measure(self, case: Case, variants: "_Variants") -> Record:
        counts: Record = {}
        try:
            if case.refused:
                raise BadInput(case.refused)
            counts = variants.counts(case.fused, case.image)
            results = self._time(case, variants)
        except Exception as error:  # a failing model must not end the sweep
            message = str(error) if isinstance(error, ZooError) else first_line(error)
            self.failures.append(message)
            results = self._failed(message)
        return {
            "model": case.model,
            "args": self.plan.arguments,
            **counts,
            **results,
            **self.identity(case),
            "command": shlex.join(_command()),
        }

    def _time(self, case: Case, variants: "_Variants") -> Record:
        settings = self.plan.settings
        source = variants.source(case)
        results = measure(source, case.input_size, case.runtime, **settings).to_dict()
        unfused = replace(case, fused=False)
        if case.fused and unfused in self.cases:
            results["paired"] = self._compare(unfused, case, variants)
        if self.plan.layers and case.runtime == "eager":
            same = {key: settings[key] for key in ("threads", "dtype", "channels_last")}
            model = variants.model(case.fused)
            results["layers"] = profile_layers(model, case.input_size, **same).to_dict()
        budget = MeasurementBudget(**{key: settings[key] for key in _BUDGET})
        same = {key: value for key, value in settings.items() if key not in _BUDGET}
        measured = self.plan.production.measure(
            source, case.input_size, case.runtime, budget, **same
        )
        return results | measured

    def _compare(self, unfused: Case, fused: Case, variants: "_Variants") -> Record:
        """Time both variants in turn: only that shows whether fusing makes a model faster."""
        sources = (variants.source(unfused), variants.source(fused))
        found = compare(*sources, fused.input_size, fused.runtime, **self.plan.settings)
        return {"ratio": found.ratio, "low": found.low, "high": found.high, "n": found.n}

    def _failed(self, error: str) -> Record:
        return {
            "error": error,
            "runtime_version": "",
            "threads": self._requested["threads"],
            "dtype": self._requested["dtype"],
            "layout": "NHWC" if self._requested["channels_last"] else "NCHW",
        }


class _Variants:
    """The unfused, fused and exported variants of one model and their counts, built on demand."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self._name = name
        self._arguments = arguments
        self._models: dict[bool, nn.Module] = {}
        self._counts: dict[tuple[bool, tuple[int, ...]], Record] = {}
        self._files: dict[tuple[bool, tuple[int, ...], str], Path] = {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def source(self, case: Case) -> nn.Module | Path:
        """Return what the runtime of a case loads: a model, or an artefact that cases may share."""
        model = self.model(case.fused)
        suffix = runtimes.artefact_suffix(case.runtime)
        if suffix is None:
            return model
        key = (case.fused, case.input_size, suffix)
        if key not in self._files:
            file = Path(self._folder.name) / f"{len(self._files)}{suffix}"
            convert(model, file, input_size=case.input_size, dynamic_batch=False)
            self._files[key] = file
        return self._files[key]

    def model(self, fused: bool) -> nn.Module:
        """Return the model, fused or not, in evaluation mode."""
        if fused not in self._models:
            self._models[fused] = (
                reparameterize(self.model(False))
                if fused
                else create_model(self._name, **self._arguments).eval()
            )
        return self._models[fused]

    def counts(self, fused: bool, image: tuple[int, ...]) -> Record:
        """Return the counts for one image."""
        key = (fused, image)
        if key not in self._counts:
            self._counts[key] = self._count(fused, image)
        return self._counts[key]

    def _count(self, fused: bool, image: tuple[int, ...]) -> Record:
        """Count the model for one image.

        Raises:
            BadInput: The model cannot run at that size.
        """
        model = self.model(fused)
        try:
            counts = count(model, (1, *image))
        except UncountedOperator as error:
            params = sum(parameter.numel() for parameter in model.parameters())
            missing = dict.fromkeys(_COUNTS[1:])
            return {"params": params, **missing, "count_error": str(error)}
        except Exception as error:  # a model may raise any exception on an unsuitable size
            size = "x".join(map(str, image[1:]))
            raise BadInput(f"{self._name} cannot run at {size}: {first_line(error)}") from error
        return {**{key: getattr(counts, key) for key in _COUNTS}, "count_error": None}


def progress(console: Console) -> Progress:
    """Return a progress bar that is redrawn only between measurements."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        speed_estimate_period=3600,  # a measurement may take minutes
        transient=True,
        disable=not console.is_terminal,
    )


def print_summary(rows: Sequence[Record], results: Results) -> None:
    """Print the results, the machine, the failed cases, and the path of the records."""
    kept = sum("error" not in row for row in rows)
    records = f"{kept} record{'' if kept == 1 else 's'}"
    shown, omitted = table(rows)
    print_all(
        shown,
        *(line for row in rows for line in production.lines(row)),
        *dict.fromkeys([*legend(rows, omitted), summary(), *_failures(rows)]),
        f"{records} in {results.path}; to write a report: "
        f"{command_line('report', {}, results.path)}",
    )


def _print_earlier_records(
    sweep_run: SweepRun, measured: dict[str, Record], results: Results
) -> None:
    for note in results.notes:
        print(f"warning: {results.path}: {note}", file=sys.stderr)
    known = sum(case_key(sweep_run.identity(case)) in measured for case in sweep_run.cases)
    if known:
        print(
            f"skipping {known} of {len(sweep_run.cases)} measurements that {results.path} already "
            "contains for the same settings, machine and versions"
        )


def new_folder(models: Sequence[str]) -> str:
    """Return the path of a new folder, named after the time and the models."""
    label = models[0].replace("/", "_") if len(models) == 1 else f"{len(models)}_models"
    stem = f"runs/benchmark/{datetime.now():%Y-%m-%d_%H%M%S}_{label}"
    numbered = (f"{stem}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if not Path(name).exists())


def _failures(rows: Sequence[Record]) -> list[str]:
    """Return one line for each model that could not be counted or measured."""
    lines = []
    for row in rows:
        if row.get("count_error"):
            lines.append(f"not counted: {row['model']}: {row['count_error']}")
        if "error" in row:
            lines.append(f"not measured: {row['model']} in {row['runtime']}: {row['error']}")
    return lines


def _raise_if_incomplete(rows: Sequence[Record]) -> None:
    uncounted = dict.fromkeys(row["model"] for row in rows if row.get("count_error"))
    failed = dict.fromkeys(row["model"] for row in rows if "error" in row)
    if failed:
        raise ZooError(f"not measured: {', '.join(failed)}; see the reasons above")
    if uncounted:
        raise UncountedOperator(f"not counted: {', '.join(uncounted)}; see the reasons above")


def _command() -> list[str]:
    """Return the command line, without the folder of the script."""
    script, arguments = Path(sys.argv[0]), sys.argv[1:]
    if script.name == "__main__.py":
        return ["python", "-m", script.parent.name, *arguments]
    return [*(["python"] if script.suffix == ".py" else []), script.name, *arguments]
