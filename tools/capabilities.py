"""Which model can be exported to which format: tried, and kept in `results/capabilities.json`.

`python -m tools capabilities` exports the smallest variant of each family and task to each format
in each mode, with random weights, and compares the artefact with the model. Each attempt is a
cell with its outcome, versions and date. A cell stays until it is tried again.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from tools import capability_page
from tools.capability_page import CONVERTED, FAILED, INACCURATE, REFUSED, SLOW, UNPROVEN, WORKS
from tools.project import ROOT, axes, smallest
from zoo import registry
from zoo.deploy.formats import FORMATS
from zoo.errors import NotExportable, OutputsDiffer, ZooError

RECORDS = ROOT / "results" / "capabilities.json"
PAGE = ROOT / "docs" / "capabilities.md"
MODES: dict[str, dict[str, bool]] = {
    "static": {"dynamic_batch": False},
    "dynamic batch": {"dynamic_batch": True},
    "dynamic size": {"dynamic_batch": False, "dynamic_size": True},
    "fp16": {"dynamic_batch": False, "half": True},
    "int8": {"dynamic_batch": False},
}
LOW_PRECISION = ("fp16", "int8")
NORM_IMAGES = 8  # random images of each kind, from which batch norms take their statistics
CALIBRATION = 8  # random images of each kind, from which int8 takes its ranges
MIN_SNR = 3.0  # dB: below it, half of the power of an int8 output is noise
LIMIT = 240  # seconds of processor time per cell, so that a busy machine changes no outcome
PATIENCE = 20  # times the limit by the clock, for a process that waits instead of computing
# Exit codes of a process that reached a limit; Windows has no such signals.
TIMED_OUT = tuple(-getattr(signal, name, 0) for name in ("SIGPROF", "SIGALRM"))

Cell = tuple[str, str]  # format and mode, of one model


def small_input(name: str) -> tuple[int, ...]:
    """Return B C H W of a small input that a model accepts."""
    facts = registry.model_info(name)["input"]
    multiple = facts.get("multiple")
    side = 64 if multiple is None else max(1, 8 // multiple) * 2 * multiple
    return (1, facts["size"][0], *[side] * axes(name))


def attempt(name: str, format: str, mode: str) -> dict[str, Any]:
    """Export a model in one mode, and return the outcome.

    Random weights can make the values of a deep model exceed what few bits represent, or amplify
    rounding errors, as trained weights do not. Where precision may be the cause of a failure, a
    second attempt gives the batch norms the statistics of random images.
    """
    begin = time.perf_counter()
    result = _attempted(name, format, mode, calibrated_norms=False)
    fails = result["outcome"] not in (WORKS, CONVERTED)
    if fails and (mode in LOW_PRECISION or result.get("error") == OutputsDiffer.__name__):
        again = _attempted(name, format, mode, calibrated_norms=True)
        if again["outcome"] in (WORKS, CONVERTED):
            result = {**again, "calibrated_norms": True}
    seconds = round(time.perf_counter() - begin, 1)
    return {**_blank(name, format, mode), **result, "seconds": seconds}


def _attempted(name: str, format: str, mode: str, *, calibrated_norms: bool) -> dict[str, Any]:
    try:
        model = random_model(name, calibrated_norms=calibrated_norms)
        with tempfile.TemporaryDirectory() as folder:
            return _outcome(export_in(mode, model, name, format, folder).manifest)
    except NotExportable as error:
        return {"outcome": REFUSED, "reason": str(error), "error": type(error).__name__}
    except ZooError as error:
        return {"outcome": FAILED, "reason": str(error), "error": type(error).__name__}
    except Exception as error:  # a bug is an outcome, too
        return {"outcome": FAILED, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


@functools.lru_cache(2)
def random_model(name: str, *, calibrated_norms: bool) -> Any:
    """Build a model with random weights of order one; exporting does not change it.

    Args:
        name: A registered model.
        calibrated_norms: Give batch norms the statistics of random images.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from zoo.deploy.agreement import random_batches
    from zoo.factory import create_model
    from zoo.reparam import randomize_parameters

    model = randomize_parameters(create_model(name)).eval()
    if calibrated_norms:
        for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        with torch.no_grad():
            for images in random_batches(small_input(name)[1:], [NORM_IMAGES]):
                model(torch.from_numpy(images))
    return model.eval()


def export_in(mode: str, model: Any, name: str, format: str, folder: str | Path) -> Any:
    """Export a registered model at its small size in a mode; int8 is calibrated on random images.

    Raises:
        NotExportable: The format or the model does not support it.
    """
    from zoo.compression import int8
    from zoo.deploy.agreement import random_batches
    from zoo.deploy.manifest import Origin
    from zoo.deploy.pipeline import export

    size = small_input(name)
    options: dict[str, Any] = {"input_size": size, "origin": Origin(name), **MODES[mode]}
    if mode != "int8":
        return export(model, format, folder, **options)
    images = list(random_batches(size[1:], [1] * CALIBRATION))
    return int8.quantize(model, format, folder, batches=images, **options)


def _outcome(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome that the manifest of an artefact states."""
    comparison = manifest["comparison"]
    outcome: dict[str, Any] = {
        "outcome": WORKS,
        "error_of_spread": comparison.get("max_rel_error"),
        "multiple": manifest["input"].get("multiple"),
    }
    if "snr_db" in comparison:
        outcome["snr_db"] = round(comparison["snr_db"], 1)
        outcome["outcome"] = WORKS if comparison["snr_db"] >= MIN_SNR else INACCURATE
    elif comparison["runtime"] is None:
        outcome["outcome"] = CONVERTED
    elif not comparison["proven"]:
        outcome["outcome"] = UNPROVEN
    return outcome


def attempt_all(name: str, cells: Sequence[Cell]) -> None:
    """Try cells of a model one after the other, and print each outcome as a line of JSON.

    A cell that reaches a time limit ends the process, whichever code it runs.
    """
    for format, mode in cells:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        signal.alarm(PATIENCE * LIMIT)
        result = attempt(name, format, mode)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("\n" + json.dumps(result), flush=True)


def measure(
    names: Sequence[str] | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    modes: Sequence[str] = tuple(MODES),
) -> None:
    """Try every combination that the format does not refuse, and store each outcome at once.

    Args:
        names: Registered models; by default the smallest of each family.
        formats: Keys of `FORMATS`.
        modes: Keys of `MODES`.

    Raises:
        UnknownModel: A name is not registered.
    """
    names = smallest() if names is None else [registry.get_spec(name).name for name in names]
    cells = [(f, mode) for mode in modes for f in formats if refusal(f, mode) is None]
    for name in names:
        for result in _isolated(name, cells):
            _store([result])
            reason = f": {result['reason']}" if "reason" in result else ""
            cell = f"{name} {result['format']} {result['mode']}"
            print(f"{cell}: {result['outcome']}{reason}", flush=True)


def _blank(name: str, format: str, mode: str) -> dict[str, Any]:
    return {"model": name, "format": format, "mode": mode, "input": list(small_input(name))}


def refusal(format: str, mode: str) -> str | None:
    """Return the reason why a format refuses a mode for every model; None if it does not."""
    from zoo.compression import int8

    if mode == "int8":
        return int8.UNSUPPORTED.get(format)
    settings = [setting for setting, value in MODES[mode].items() if value]
    return next(
        (FORMATS[format].unsupported[s] for s in settings if not FORMATS[format].supports(s)), None
    )


def _isolated(name: str, cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Try cells in a process of their own; after a crash, the rest in another.

    A cell that crashes after others is tried again by itself, as those before it may be the cause.
    """
    while cells:
        code, done = yield from _process(name, cells)
        cells = cells[done:]
        if not cells:
            return
        if done and code not in TIMED_OUT:
            code, done = yield from _process(name, cells[:1])
            if done:
                cells = cells[1:]
                continue
        yield _crashed(name, cells[0], code)
        cells = cells[1:]


def _process(name: str, cells: list[Cell]) -> Generator[dict[str, Any], None, tuple[int, int]]:
    """Yield the outcomes of a process for some cells; return its exit code and their number."""
    call = f"from tools.capabilities import attempt_all; attempt_all({name!r}, {cells!r})"
    count = 0
    with (
        tempfile.TemporaryDirectory() as folder,  # deleted even if the process is killed
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", call],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"model"'):
                count += 1
                yield json.loads(line)
    return process.returncode, count


def _crashed(name: str, cell: Cell, code: int) -> dict[str, Any]:
    if code in TIMED_OUT:
        return {**_blank(name, *cell), "outcome": SLOW, "seconds": float(LIMIT)}
    reason = f"the process ended with exit code {code}"
    return {**_blank(name, *cell), "outcome": FAILED, "reason": reason, "seconds": None}


def _store(cells: list[dict[str, Any]]) -> None:
    from zoo.environment import describe_machine, versions

    stamp = {"versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    machine = describe_machine()
    RECORDS.parent.mkdir(exist_ok=True)
    # Several runs may try different models at the same time.
    with FileLock(RECORDS.with_suffix(".lock")):
        stored = {_key(cell): cell for cell in read()}
        stored |= {_key(cell): {**cell, **stamp} for cell in cells}
        content = {
            "command": "python -m tools capabilities",
            "machine": machine,
            "cells": [stored[key] for key in sorted(stored)],
        }
        draft = RECORDS.with_suffix(".partial")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(RECORDS)


def _key(cell: dict[str, Any]) -> tuple[str, str, str]:
    return cell["model"], cell["format"], cell["mode"]


def read() -> list[dict[str, Any]]:
    """Return the stored cells; none if there is no file."""
    return json.loads(RECORDS.read_text("utf-8"))["cells"] if RECORDS.exists() else []


def untested() -> list[str]:
    """Return the smallest models that were not tried in every format and mode."""
    tried = {_key(cell) for cell in read()}
    cells = [(f, mode) for f in FORMATS for mode in MODES if refusal(f, mode) is None]
    return [name for name in smallest() if not {(name, *cell) for cell in cells} <= tried]


def render() -> str:
    """Return the page: a row for each smallest model, and for any other that was tried."""
    cells = [cell for cell in read() if registry.is_packaged(cell["model"])]
    names = sorted({*smallest(), *(cell["model"] for cell in cells)})
    refused = [
        {"model": name, "format": format, "mode": mode, "outcome": REFUSED, "reason": reason}
        for format in FORMATS
        for mode in MODES
        if (reason := refusal(format, mode))
        for name in names
    ]
    return capability_page.render(names, [*cells, *refused], MODES, limit=LIMIT, min_snr=MIN_SNR)
