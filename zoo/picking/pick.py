"""Find the most accurate model that meets a latency on this machine, and write down how."""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from zoo.environment import parallel_limit
from zoo.errors import BadInput, ZooError
from zoo.picking import probe, show
from zoo.picking import record as records
from zoo.picking.candidates import Candidate, candidates, chosen_runtimes
from zoo.picking.predict import Predictor
from zoo.picking.search import Measured, Search, Timer, seconds_left
from zoo.picking.timer import MachineTimer, limits
from zoo.profiling.layers import Roofline
from zoo.progress import phase
from zoo.quoting import command_line
from zoo.reports.records import Record, Results
from zoo.reports.writing import replace_files
from zoo.settings import PickConfig

FINALISTS_WITH_DATA = 3


def pick(
    settings: PickConfig,
    *,
    timer: Timer | None = None,
    roofline: Roofline | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Search, print the result, and write it to the folder `settings.out`.

    Args:
        settings: What to look for.
        timer: What times the candidates; None for this machine.
        roofline: The limits of the machine; None to measure them.
        clock: Function that returns the current time in seconds.

    Returns:
        The content of `pick.json`.

    Raises:
        BadInput: A setting is invalid; or, after the result was written, no candidate meets the
            budget.
        MissingExtra: A package of a runtime is not installed.
        SystemExit: The user interrupted the search; all finished measurements are saved.
    """
    check(settings)
    images = probe.open_images(settings.data) if settings.data else None
    runtimes, found = chosen_runtimes(settings), candidates(settings)
    here = records.environment()
    folder = Path(settings.out or _new_folder(settings.ms)).expanduser()
    results = Results(folder, "--out")
    for note in results.notes:
        print(f"warning: {results.path}: {note}", file=sys.stderr)
    earlier, known = records.from_records(results.earlier, found, settings.threads, here)
    if roofline is None:
        with phase("measuring the machine's speed"):
            roofline = known or limits(settings.threads)
    finalists = settings.finalists or (FINALISTS_WITH_DATA if images else 1)
    search = Search(
        Predictor(found, roofline), timer or MachineTimer(settings.threads), settings.ms, finalists
    )
    search.recall(earlier)

    def row(one: Measured) -> Record:
        return records.to_record(one, settings.threads, roofline, here)

    try:
        with results:
            _run(search, lambda one: results.add(row(one)), clock)
    except KeyboardInterrupt:
        again = command_line("pick", {}, "--ms", f"{settings.ms:g}", "--out", folder)
        print(
            f"interrupted: {len(search.measured)} measurements are in {results.path}; to continue, "
            f"run the same command with --out {folder}, such as: {again}",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    rows = {one.candidate: row(one) for one in search.measured}
    final = [rows[one.candidate] for one in search.final()]
    if images is not None:
        final = rank_on_images([one.candidate for one in search.final()], rows, images)
    commands = show.commands(final[0], settings.data) if final else []
    content = records.summary(
        settings, here, runtimes, len(found), list(rows.values()), search.failed, final, commands
    )
    assert not (fault := records.find_pick_fault(content)), fault
    folder.mkdir(parents=True, exist_ok=True)
    replace_files({folder / records.NAME: records.text(content)})
    if rows:
        show.draw(content, folder)
    show.print_result(content, folder)
    if not final:
        raise BadInput(_nothing_fits(search))
    return content


def check(settings: PickConfig) -> None:
    """Raise `BadInput` for a setting that cannot work, before anything is read."""
    for name, value in (("--ms", settings.ms), ("--top1", settings.top1)):
        if value is not None and not (_is_number(value) and value > 0):
            raise BadInput(f"{name}={value!r} must be a number above 0")
    if settings.top1 is not None and settings.top1 >= 100:
        raise BadInput(f"--top1={settings.top1!r} must be a percentage below 100")
    for name, value in (("--threads", settings.threads), ("--finalists", settings.finalists)):
        if value is not None and (type(value) is not int or value < 1):
            raise BadInput(f"{name}={value!r} must be a positive integer")
    if settings.threads > parallel_limit():
        raise BadInput(f"--threads={settings.threads} is too many; use at most {parallel_limit()}")
    for side in settings.size:
        if type(side) is not int or side < 1:
            raise BadInput(f"--size={side!r} must be a positive number of pixels")


def rank_on_images(
    finalists: list[Candidate], rows: dict[Candidate, Record], images: Any
) -> list[Record]:
    """Return the records of finalists, the one with the best linear classifier first.

    A finalist whose weights cannot be fetched comes last, and its record says why.

    Raises:
        BadInput: No finalist could be ranked.
    """
    chosen = probe.chosen_images(images)
    labels = np.asarray(images.labels)[chosen]
    ranked: list[Record] = []
    for candidate in finalists:
        try:
            values = probe.features(candidate, images, chosen)
            entry: dict[str, Any] = {"probe": dataclasses.asdict(probe.score(values, labels))}
        except ZooError as error:
            entry = {"probe": None, "probe_error": str(error)}
        ranked.append({**rows[candidate], **entry})
    if finalists and all(row["probe"] is None for row in ranked):
        raise BadInput(f"--data: no finalist could be ranked: {ranked[0]['probe_error']}")
    accuracy = [row["probe"]["accuracy"] if row["probe"] else -1.0 for row in ranked]
    order = sorted(range(len(ranked)), key=lambda i: (-accuracy[i], ranked[i]["p50_ms"]))
    return [ranked[i] for i in order]


def _run(search: Search, add: Callable[[Measured], None], clock: Callable[[], float]) -> None:
    """Measure candidates until none promises a gain."""
    spent: list[float] = []
    for number in itertools.count(len(search.measured) + 1):
        promising, doubtful = search.promising(), search.second_chances()
        if not promising and not doubtful:
            return
        candidate, left = (promising or doubtful)[0], seconds_left(search, spent)
        eta = "" if left is None else f", at most {_duration(left)} left"
        predicted = search.predictor.ms(candidate)
        begin = clock()
        with phase(f"candidate {number}: {candidate}, predicted {predicted:.1f} ms{eta}"):
            found = (search.step if promising else search.repeat)(candidate)
        spent.append(clock() - begin)
        if found is not None:
            add(found)


def _nothing_fits(search: Search) -> str:
    if not search.measured:
        if search.failed:
            candidate, reason = next(iter(search.failed.items()))
            return f"no candidate could be measured; {candidate}: {reason}"
        predicted = min(map(search.predictor.ms, search.predictor.candidates))
        return (
            f"--ms {search.budget_ms:g}: no candidate can meet it; the fastest is predicted to "
            f"take {predicted:.2g} ms"
        )
    fastest = min(search.measured, key=lambda found: found.times.p50)
    return (
        f"--ms {search.budget_ms:g}: no candidate meets it; the fastest of {len(search.measured)} "
        f"measured is {fastest.candidate} with {fastest.times.p50:.2f} ms"
    )


def _new_folder(ms: float) -> str:
    stem = f"runs/pick/{datetime.now():%Y-%m-%d_%H%M%S}_{ms:g}ms"
    numbered = (f"{stem}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if not Path(name).exists())


def _duration(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 90 else f"{math.ceil(seconds / 60)} min"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
