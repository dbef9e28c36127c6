"""What `benchmark.py` does: count and time every asked model under every asked setting.

All that can be refused is refused first: names, settings, the folder of the records; then every
model is built, run and counted once; only then are times measured.
"""

import fnmatch
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from zoo import registry, runtimes
from zoo.blocks.sizes import pair
from zoo.config import model_arguments
from zoo.errors import BadInput, UncountedOperator, UnknownModel, ZooError
from zoo.factory import create_model
from zoo.inputs import own_input
from zoo.profiling.count import count
from zoo.profiling.latency import Effort, measure
from zoo.profiling.machine import summary
from zoo.profiling.report import Record, Results, legend, table
from zoo.reparam import reparameterize

FUSED = {"both": (False, True), "true": (True,), "false": (False,)}


@dataclass(frozen=True)
class Case:
    """One measurement that is to be made; the sizes are C H W and a number of images."""

    model: str
    image: tuple[int, int, int]
    fused: bool
    runtime: str
    batch: int


@dataclass
class Plan:
    """What is asked, checked.

    Attributes:
        models: Names for `create_model`.
        arguments: Its other arguments.
        images: (H, W) of each asked size; None for a model's own.
        fused: False, True or both.
        runtimes: Names of runtimes.
        batches: Batch sizes.
        settings: Arguments of `measure` that all cases share.
        counts: Params, MACs, FLOPs, activations of each (model, image, fused).
    """

    models: list[str]
    arguments: dict[str, Any]
    images: list[tuple[int, int] | None]
    fused: tuple[bool, ...]
    runtimes: list[str]
    batches: list[int]
    settings: dict[str, Any]
    counts: dict[tuple[str, tuple[int, int, int], bool], Record] = field(default_factory=dict)


def run(cfg: Any) -> list[Record]:
    """Do what the configuration of `benchmark.py` asks, print the table, keep the records.

    Raises:
        ZooError: Something asked cannot work; or, at the end, an operator has no rule or a model
            could not be measured: the table says which.
    """
    plan = read_plan(cfg)
    folder = Path(cfg.profile.out or _new_folder(plan.models)).expanduser()
    results = Results(folder)
    console = Console(stderr=True)
    rows: list[Record] = []
    try:
        with progress(console) as bar:
            count_all(plan, bar)
            for record in measure_all(plan, bar):
                rows.append(record)
                if "error" not in record:
                    results.add(record)
    finally:
        results.finish()
    show(rows, results)
    _raise_if_incomplete(rows)
    return rows


def read_plan(cfg: Any) -> Plan:
    """Check every value of the configuration, without building a model.

    Raises:
        UnknownModel: A name or glob that no model has.
        BadInput: A value that cannot work.
    """
    profile = cfg.profile
    arguments = model_arguments(cfg.model)
    named = arguments.pop("name")
    names = list(cfg.models) or [named]
    fused = str(profile.fused).lower()
    if fused not in FUSED:
        raise BadInput(f"profile.fused={profile.fused!r} must be both, true or false")
    for key in ("runtimes", "batch_sizes"):
        if not profile[key]:
            raise BadInput(f"profile.{key}=[] leaves nothing to measure")
    for batch in profile.batch_sizes:
        if batch < 1:
            raise BadInput(f"profile.batch_sizes: {batch} is not a number of images")
    Effort(profile.min_runs, profile.min_time, profile.max_time).check()
    settings = {
        "threads": profile.threads,
        "dtype": profile.dtype,
        "channels_last": profile.channels_last,
    }
    for runtime in profile.runtimes:
        runtimes.check(runtime, **settings)
    return Plan(
        models=resolve_names(names),
        arguments=arguments,
        images=[
            None if size is None else pair(_listed(size), "profile.image_sizes")
            for size in profile.image_sizes or [None]
        ],
        fused=FUSED[fused],
        runtimes=list(dict.fromkeys(profile.runtimes)),
        batches=list(dict.fromkeys(profile.batch_sizes)),
        settings={
            **settings,
            "min_runs": profile.min_runs,
            "min_time": profile.min_time,
            "max_time": profile.max_time,
        },
    )


def resolve_names(patterns: Sequence[str]) -> list[str]:
    """Return the models that names and globs stand for, each once, in the order asked.

    Args:
        patterns: Registered names, globs over them, `timm/<name>` or `timm/<glob>`.

    Raises:
        UnknownModel: A name that there is not (the nearest are named), or a glob without a match.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        is_timm = pattern.startswith("timm/")
        is_glob = any(character in pattern for character in "*?[")
        if is_timm:
            matches = _timm_names(pattern, is_glob)
        elif is_glob:
            matches = registry.list_models(pattern)
        else:
            matches = [registry.get_spec(pattern).name]
        if not matches:
            raise UnknownModel(f"no model matches {pattern!r}; zoo.list_models() shows all")
        found |= dict.fromkeys(matches)
    return list(found)


def count_all(plan: Plan, bar: Progress) -> None:
    """Build, run and count every model at every size, so that what cannot work shows now.

    Raises:
        BadInput: A model that does not run at a size.
    """
    task = bar.add_task("", total=len(plan.models))
    for name in plan.models:
        bar.update(task, description=f"counting {name}", refresh=True)
        model = create_model(name, **plan.arguments).eval()
        forms = {fused: reparameterize(model) if fused else model for fused in plan.fused}
        for wanted in plan.images:
            image = _image(model, name, wanted)
            for fused, form in forms.items():
                key = (name, image, fused)
                plan.counts.setdefault(key, _counted(form, name, image))
        bar.update(task, advance=1, refresh=True)
    bar.remove_task(task)


def measure_all(plan: Plan, bar: Progress) -> Iterator[Record]:
    """Time every case of the plan; one that fails gives a record with `error`."""
    total = len(plan.counts) * len(plan.runtimes) * len(plan.batches)
    task = bar.add_task("", total=total)
    for name in plan.models:
        model = create_model(name, **plan.arguments).eval()
        for fused in plan.fused:
            form = reparameterize(model) if fused else model
            for case in _cases(plan, name, fused):
                yield _measured(plan, case, form, bar, task)


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
        transient=True,
        disable=not console.is_terminal,
    )


def show(rows: Sequence[Record], results: Results) -> None:
    """Print the table, the machine, what is missing and why, and where the records are."""
    console = Console(highlight=False)
    # A narrow terminal or a pipe gets whole lines rather than shortened figures.
    wide = Console(highlight=False, width=max(console.width, 1000))
    shown = table(rows)
    Console(highlight=False, width=wide.measure(shown).maximum).print(shown)
    for message in dict.fromkeys([*legend(rows), summary(), *_complaints(rows)]):
        console.print(message, markup=False, soft_wrap=True)
    kept = sum("error" not in row for row in rows)
    more = f" (appended; {results.before + kept} in all)" if results.before else ""
    records = f"{kept} record{'' if kept == 1 else 's'}"
    console.print(f"{records} in {results.folder}{more}: JSON lines and CSV", soft_wrap=True)


def _measured(plan: Plan, case: Case, form: nn.Module, bar: Progress, task: TaskID) -> Record:
    kind = "fused" if case.fused else "unfused"
    size = f"{case.batch}x{'x'.join(map(str, case.image))}"
    bar.update(task, description=f"{case.model} {kind} {case.runtime} {size}", refresh=True)
    record = {
        "model": case.model,
        "args": plan.arguments,
        **plan.counts[case.model, case.image, case.fused],
    }
    try:
        latency = measure(form, (case.batch, *case.image), case.runtime, **plan.settings).to_dict()
    except ZooError as error:
        latency = _unmeasured(plan, case, str(error))
    bar.update(task, advance=1, refresh=True)
    return {**record, **latency, "fused": case.fused, "command": shlex.join(_command())}


def _unmeasured(plan: Plan, case: Case, error: str) -> Record:
    return {
        "error": error,
        "input_size": [case.batch, *case.image],
        "runtime": case.runtime,
        "runtime_version": "",
        "threads": plan.settings["threads"] or torch.get_num_threads(),
        "dtype": plan.settings["dtype"],
        "layout": "NHWC" if plan.settings["channels_last"] else "NCHW",
    }


def _counted(form: nn.Module, name: str, image: tuple[int, int, int]) -> Record:
    try:
        counts = count(form, (1, *image))
    except UncountedOperator as error:
        params = sum(parameter.numel() for parameter in form.parameters())
        missing = dict.fromkeys(("macs", "flops", "activations"))
        return {"params": params, **missing, "count_error": str(error)}
    except Exception as error:  # whatever a model raises at a size that it does not take
        size = "x".join(map(str, image[1:]))
        raise BadInput(f"{name} does not run at {size}: {runtimes.first_line(error)}") from error
    return {
        "params": counts.params,
        "macs": counts.macs,
        "flops": counts.flops,
        "activations": counts.activations,
        "count_error": None,
    }


def _cases(plan: Plan, name: str, fused: bool) -> list[Case]:
    images = [image for model, image, form in plan.counts if (model, form) == (name, fused)]
    return [
        Case(name, image, fused, runtime, batch)
        for image, runtime, batch in itertools.product(images, plan.runtimes, plan.batches)
    ]


def _image(model: nn.Module, name: str, wanted: tuple[int, int] | None) -> tuple[int, int, int]:
    own = own_input(model, name)["size"]
    channels = getattr(model, "in_chans", None) or (own[0] if own else 3)
    if wanted is None and own is None:
        raise BadInput(f"{name} states no size of its own; give profile.image_sizes")
    height, width = wanted or own[1:]
    return channels, height, width


def _timm_names(pattern: str, is_glob: bool) -> list[str]:
    import difflib

    import timm

    bare = pattern.removeprefix("timm/")
    if is_glob:
        return [f"timm/{name}" for name in fnmatch.filter(timm.list_models(), bare)]
    if timm.is_model(bare):
        return [pattern]
    near = difflib.get_close_matches(bare.split(".")[0], timm.list_models(), n=3)
    hint = f"; did you mean {' or '.join(f'timm/{name}' for name in near)}?" if near else ""
    raise UnknownModel(f"timm has no model {bare!r}{hint}")


def _new_folder(models: Sequence[str]) -> str:
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
    return ["python", *sys.argv] if sys.argv[0].endswith(".py") else list(sys.argv)


def _listed(value: Any) -> Any:
    return list(value) if OmegaConf.is_list(value) else value
