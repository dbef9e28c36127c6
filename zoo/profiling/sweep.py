"""What `benchmark.py` does: count and time every asked model under every asked setting.

What can be refused is refused first: names, settings, sizes, the file of the records. Then one
model after the other is built, counted, timed and let go. Each record is on disk before the next
measurement starts, and a case that the file holds already is not measured again: a sweep that was
interrupted goes on where it stopped.
"""

import itertools
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
from zoo.profiling.latency import measure
from zoo.profiling.layers import profile_layers
from zoo.profiling.plan import Case, Plan
from zoo.reparam import reparameterize
from zoo.reports.records import Record, Results, case_key
from zoo.reports.table import legend, print_whole, table

# What a record holds of one image, by its name in `zoo.counting.count.Counts`.
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
    """Make the measurements of a plan that are not in `out` yet.

    Args:
        plan: What is asked.
        out: A folder or a file `<name>.jsonl`, to which records are added.

    Returns:
        A record for each case; where it could not be measured, it has `error`.

    Raises:
        ZooError: At the end, if an operator has no rule or a model could not be measured.
        SystemExit: The user interrupted it; what was measured is kept.
    """
    work = Work(plan)
    if all(case.refused for case in work.cases):
        raise BadInput(work.cases[0].refused)
    results = Results(out)
    measured = {case_key(record): record for record in results.earlier}
    _say_what_is_there(work, measured, results)
    rows: list[Record] = []
    try:
        for record in work.records(measured):
            rows.append(record)
            if "error" not in record and case_key(record) not in measured:
                results.add(record)
    except KeyboardInterrupt:
        kept = sum("error" not in row for row in rows)
        print(
            f"interrupted: {kept} of {len(work.cases)} are in {results.path}; "
            f"the same command with profile.out={shlex.quote(str(out))} goes on there",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    finally:
        results.finish()
    if work.failures and all("error" in row for row in rows) and len(set(work.failures)) == 1:
        raise BadInput(work.failures[0])  # a table without a figure would say nothing more
    show(rows, results)
    _raise_if_incomplete(rows)
    return rows


class Work:
    """The cases of a plan, and the one model that is in memory.

    Attributes:
        cases: All cases, in order.
        failures: Messages of cases that could not be measured.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cases = plan.cases()
        self.failures: list[str] = []
        self._asked = plan.asked()
        self._base = {"machine": describe_machine(), "versions": versions()}

    def identity(self, case: Case) -> Record:
        """Return what the record of a case is recognised by."""
        return {
            "model": case.model,
            "args": self.plan.arguments,
            "input_size": list(case.input_size),
            "fused": case.fused,
            "runtime": case.runtime,
            "asked": self._asked,
            **self._base,
        }

    def records(self, measured: dict[str, Record]) -> Iterator[Record]:
        """Yield the record of each case, measured now unless it was before."""
        waiting = sum(case_key(self.identity(case)) not in measured for case in self.cases)
        with progress(Console(stderr=True)) as bar:
            task = bar.add_task("", total=waiting)
            for name, group in itertools.groupby(self.cases, key=lambda case: case.model):
                with _Forms(name, self.plan.arguments) as forms:
                    for case in group:
                        known = measured.get(case_key(self.identity(case)))
                        if known is None:
                            bar.update(task, description=str(case), refresh=True)
                            known = self._measured(case, forms)
                            bar.update(task, advance=1, refresh=True)
                        yield known

    def _measured(self, case: Case, forms: "_Forms") -> Record:
        counts: Record = {}
        try:
            if case.refused:
                raise BadInput(case.refused)
            counts = forms.counts(case.fused, case.image)
            figures = self._figures(case, forms)
        except Exception as error:  # one model that fails does not end a sweep over many
            message = str(error) if isinstance(error, ZooError) else first_line(error)
            self.failures.append(message)
            figures = self._unmeasured(message)
        return {
            "model": case.model,
            "args": self.plan.arguments,
            **counts,
            **figures,
            **self.identity(case),
            "command": shlex.join(_command()),
        }

    def _figures(self, case: Case, forms: "_Forms") -> Record:
        settings = self.plan.settings
        source = forms.source(case)
        figures = measure(source, case.input_size, case.runtime, **settings).to_dict()
        if self.plan.layers and case.runtime == "eager":
            same = {key: settings[key] for key in ("threads", "dtype", "channels_last")}
            model = forms.model(case.fused)
            figures["layers"] = profile_layers(model, case.input_size, **same).to_dict()
        return figures

    def _unmeasured(self, error: str) -> Record:
        return {
            "error": error,
            "runtime_version": "",
            "threads": self._asked["threads"],
            "dtype": self._asked["dtype"],
            "layout": "NHWC" if self._asked["channels_last"] else "NCHW",
        }


class _Forms:
    """One model as built, fused and exported, each made when first asked for, with its counts."""

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
        """Return what the runtime of a case loads: the model, or a file that others load, too."""
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
        """Return the model in evaluation mode, built or fused at the first call."""
        if fused not in self._models:
            self._models[fused] = (
                reparameterize(self.model(False))
                if fused
                else create_model(self._name, **self._arguments).eval()
            )
        return self._models[fused]

    def counts(self, fused: bool, image: tuple[int, ...]) -> Record:
        """Return what `count` says of one image, counted at the first call."""
        key = (fused, image)
        if key not in self._counts:
            self._counts[key] = self._count(fused, image)
        return self._counts[key]

    def _count(self, fused: bool, image: tuple[int, ...]) -> Record:
        """Return what is counted of one image.

        Raises:
            BadInput: The model does not run at that size.
        """
        model = self.model(fused)
        try:
            counts = count(model, (1, *image))
        except UncountedOperator as error:
            params = sum(parameter.numel() for parameter in model.parameters())
            missing = dict.fromkeys(_COUNTS[1:])
            return {"params": params, **missing, "count_error": str(error)}
        except Exception as error:  # whatever a model raises at a size that it does not take
            size = "x".join(map(str, image[1:]))
            why = first_line(error)
            raise BadInput(f"{self._name} does not run at {size}: {why}") from error
        return {**{key: getattr(counts, key) for key in _COUNTS}, "count_error": None}


def progress(console: Console) -> Progress:
    """Return the progress bar; it is drawn between measurements only, never during one."""
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


def show(rows: Sequence[Record], results: Results) -> None:
    """Print the table, the machine, what is missing and why, and where the records are."""
    kept = sum("error" not in row for row in rows)
    records = f"{kept} record{'' if kept == 1 else 's'}"
    print_whole(
        table(rows),
        *dict.fromkeys([*legend(rows), summary(), *_complaints(rows)]),
        f"{records} in {results.path}; python -m zoo report {shlex.quote(str(results.path))} "
        "makes a page of them",
    )


def _say_what_is_there(work: Work, measured: dict[str, Record], results: Results) -> None:
    if results.dropped:
        print(f"{results.path}: the last line was unfinished and is dropped")
    known = sum(case_key(work.identity(case)) in measured for case in work.cases)
    if known:
        print(
            f"{known} of {len(work.cases)} are in {results.path} already, measured under the same "
            "settings and versions, and are not measured again"
        )


def new_folder(models: Sequence[str]) -> str:
    """Name a folder that is not there yet, by time and models."""
    named = models[0].replace("/", "_") if len(models) == 1 else f"{len(models)}_models"
    stem = f"runs/benchmark/{datetime.now():%Y-%m-%d_%H%M%S}_{named}"
    numbered = (f"{stem}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if not Path(name).exists())


def _complaints(rows: Sequence[Record]) -> list[str]:
    """One line for each figure that the table lacks."""
    lines = []
    for row in rows:
        if row.get("count_error"):
            lines.append(f"uncounted: {row['model']}: {row['count_error']}")
        if "error" in row:
            lines.append(f"failed: {row['model']} in {row['runtime']}: {row['error']}")
    return lines


def _raise_if_incomplete(rows: Sequence[Record]) -> None:
    uncounted = dict.fromkeys(row["model"] for row in rows if row.get("count_error"))
    failed = dict.fromkeys(row["model"] for row in rows if "error" in row)
    if failed:
        raise ZooError(f"not measured: {', '.join(failed)}; the lines above say why")
    if uncounted:
        raise UncountedOperator(f"not counted: {', '.join(uncounted)}; the lines above say why")


def _command() -> list[str]:
    """Return what was typed, without where the script stands on this machine."""
    script, arguments = Path(sys.argv[0]), sys.argv[1:]
    if script.name == "__main__.py":
        return ["python", "-m", script.parent.name, *arguments]
    return [*(["python"] if script.suffix == ".py" else []), script.name, *arguments]
