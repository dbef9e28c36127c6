"""What can be exported to what: `python -m tools.capabilities` tries it and writes it down.

The smallest variant of each family and task is exported to each format in each mode, with weights
that tell, and compared. `results/capabilities.json` keeps what came out, with versions and date;
`docs/capabilities.md` is written from it. What was tried before stays until it is tried again.
"""

import argparse
import contextlib
import fcntl
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

from tools import capability_page
from zoo import registry
from zoo.deploy.formats import FORMATS
from zoo.errors import BadInput, ZooError

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "capabilities.json"
PAGE = ROOT / "docs" / "capabilities.md"
MODES: dict[str, dict[str, bool]] = {
    "static": {"dynamic_batch": False},
    "dynamic batch": {"dynamic_batch": True},
    "dynamic size": {"dynamic_batch": False, "dynamic_size": True},
    "fp16": {"dynamic_batch": False, "half": True},
    "int8": {"dynamic_batch": False},
}
NARROW = ("fp16", "int8")  # modes whose numbers have fewer bits
SEEN = 8  # random images of each kind, for batch norms to take their statistics from
CALIBRATION = 8  # random images of each kind, to find the ranges of values on for int8
LEAST_SNR = 3.0  # dB: below it, half of what int8 says of an image is noise
LIMIT = 240  # seconds for a cell: of the processor, so that a busy machine changes no result
PATIENCE = 20  # times that by the clock, for what waits instead of computing
NOISY = "with weights that are not trained, int8 drowns what the model says of an image"
LATE = (-signal.SIGPROF, -signal.SIGALRM)  # how a process ends that took too long

Cell = tuple[str, str]  # format and mode, of one model


def smallest() -> list[str]:
    """Return the variant with the fewest parameters of each family, task and number of axes."""
    found: dict[tuple[Any, ...], str] = {}
    names = [name for name in registry.list_models() if "status" not in registry.model_info(name)]
    for name in sorted(names, key=lambda name: registry.model_info(name)["params"]):
        facts = registry.model_info(name)
        found.setdefault((facts["family"], facts["task"], len(facts["input"]["size"])), name)
    return sorted(found.values())


def small_input(name: str) -> tuple[int, ...]:
    """Return B C H W of a small input that a model takes."""
    facts = registry.model_info(name)["input"]
    channels, *sides = facts["size"]
    multiple = facts.get("multiple")
    side = 64 if multiple is None else max(1, 8 // multiple) * 2 * multiple
    return (1, channels, *[side] * len(sides))


def attempt(name: str, format: str, mode: str) -> dict[str, Any]:
    """Export a model in one mode, and return whether that works and else why not.

    Whether few bits hold what is computed depends on the weights, and whether rounding decides
    what comes out: there are two tries then.
    """
    begin = time.perf_counter()
    said = _tried(name, format, mode, settled=False)
    if not said["works"] and (mode in NARROW or "does not match the model" in said["reason"]):
        again = _tried(name, format, mode, settled=True)
        said = {**again, "settled": True} if again["works"] else said
    return {**_blank(name, format, mode), **said, "seconds": round(time.perf_counter() - begin, 1)}


def _tried(name: str, format: str, mode: str, *, settled: bool) -> dict[str, Any]:
    try:
        model = weighted(name, settled=settled)
        with tempfile.TemporaryDirectory() as folder:
            return _judged(export_in(mode, model, name, format, folder))
    except ZooError as error:
        return {"works": False, "reason": str(error), "error": type(error).__name__}
    except Exception as error:  # what is not foreseen belongs in the table, too
        return {"works": False, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


@functools.lru_cache(2)
def weighted(name: str, *, settled: bool) -> Any:
    """Build a model with weights that tell; exports leave it as it is.

    Args:
        name: Of a registered model.
        settled: Let batch norms hold the statistics of random images, as training would: else
            values grow from layer to layer, beyond what few bits hold, as in no trained model.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from zoo.deploy.agreement import random_batches
    from zoo.factory import create_model
    from zoo.reparam import shake

    model = shake(create_model(name)).eval()
    if settled:
        for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
            norm.reset_running_stats()
            norm.momentum = None  # the mean of what is seen
            norm.train()
        with torch.no_grad():
            for images in random_batches(small_input(name)[1:], [SEEN]):
                model(torch.from_numpy(images))
    return model.eval()


def export_in(mode: str, model: Any, name: str, format: str, folder: str | Path) -> Any:
    """Export `model`, a registered one, at its small size in a mode; in int8 by random images."""
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


def _judged(made: Any) -> dict[str, Any]:
    """What the manifest of an artefact says for the table."""
    found = made.manifest["comparison"]
    said = {
        "works": True,
        "reason": None,
        "error_of_spread": found.get("max_rel_error"),
        "multiple": made.manifest["input"].get("multiple"),
    }
    if "snr_db" in found:
        said |= {"snr_db": round(found["snr_db"], 1), "works": found["snr_db"] >= LEAST_SNR}
        if not said["works"]:
            said["reason"] = f"{NOISY}: below {LEAST_SNR:g} dB on random images"
    elif found["runtime"] is None:
        said["reason"] = "converted and validated, not compared"
    elif not found["proven"]:
        said |= {"works": False}
        said["reason"] = "the outputs hardly differ between images: not proven equal"
    return said


def attempt_all(name: str, cells: Sequence[Cell]) -> None:
    """Try cells of a model one after the other, and print each result as a line of JSON.

    A cell that takes longer than `LIMIT` ends the process, whatever code it hangs in.
    """
    for format, mode in cells:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        signal.alarm(PATIENCE * LIMIT)
        said = attempt(name, format, mode)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("\n" + json.dumps(said), flush=True)


def measure(names: Sequence[str], kinds: Sequence[str], modes: Sequence[str]) -> None:
    """Try every combination, in a process for each model, and keep what came out at once."""
    for name in names:
        cells = [(format, mode) for mode in modes for format in kinds]
        refused = [_refused(name, *cell) for cell in cells]
        _keep([cell for cell in refused if cell])
        rest = [cell for cell, said in zip(cells, refused, strict=True) if said is None]
        for said in _apart(name, rest):
            _keep([said])
            state = "works" if said["works"] else said["reason"]
            print(f"{name} {said['format']} {said['mode']}: {state}", flush=True)


def _blank(name: str, format: str, mode: str) -> dict[str, Any]:
    return {"model": name, "format": format, "mode": mode, "input": list(small_input(name))}


def _refused(name: str, format: str, mode: str) -> dict[str, Any] | None:
    """What the format cannot do in principle needs no process."""
    from zoo.compression import int8

    reasons = [FORMATS[format].unsupported[key] for key, on in MODES[mode].items()
               if on and not FORMATS[format].supports(key)]  # fmt: skip
    if mode == "int8" and format in int8.UNSUPPORTED:
        reasons = [int8.UNSUPPORTED[format]]
    if not reasons:
        return None
    said = {"works": False, "reason": reasons[0], "error": "NotExportable", "seconds": 0.0}
    return {**_blank(name, format, mode), **said}


def _apart(name: str, cells: list[Cell]) -> Iterator[dict[str, Any]]:
    """Try cells in a process of their own, and those that a crash left untried in another.

    A cell that crashes after others is tried once more alone, as what came before may be why.
    """
    while cells:
        code, done = yield from _process(name, cells)
        cells = cells[done:]
        if not cells:
            return
        if done and code not in LATE:
            code, done = yield from _process(name, cells[:1])
            if done:
                cells = cells[1:]
                continue
        yield _crashed(name, cells[0], code)
        cells = cells[1:]


def _process(name: str, cells: list[Cell]) -> Generator[dict[str, Any], None, tuple[int, int]]:
    """Yield what a process for some cells finds out; return how it ended, and after how many."""
    call = f"from tools.capabilities import attempt_all; attempt_all({name!r}, {cells!r})"
    count = 0
    with (
        tempfile.TemporaryDirectory() as folder,  # gone whole, even if the process was killed
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
    late = code in LATE
    reason = f"took longer than {LIMIT} s" if late else f"the process ended with {code}"
    seconds = float(LIMIT) if late else None
    return {**_blank(name, *cell), "works": False, "reason": reason, "seconds": seconds}


def _keep(cells: list[dict[str, Any]]) -> None:
    from zoo.environment import describe_machine, versions

    stamp = {"versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    machine = describe_machine()
    RECORDS.parent.mkdir(exist_ok=True)
    with _alone(RECORDS.parent):
        both = {_key(cell): cell for cell in read()["cells"]}
        both |= {_key(cell): {**cell, **stamp} for cell in cells}
        content = {
            "command": "python -m tools.capabilities",
            "machine": machine,
            "cells": [both[key] for key in sorted(both)],
        }
        draft = RECORDS.with_suffix(".partial")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(RECORDS)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes: several runs may share out the models."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _key(cell: dict[str, Any]) -> tuple[str, str, str]:
    return cell["model"], cell["format"], cell["mode"]


def read() -> dict[str, Any]:
    """Return what was tried; nothing where nothing was."""
    if not RECORDS.exists():
        return {"cells": []}
    return json.loads(RECORDS.read_text(encoding="utf-8"))


def page() -> str:
    """Return the page of all that was tried."""
    return capability_page.page(read()["cells"], MODES)


def main(arguments: list[str] | None = None) -> None:
    """Try what is asked, all by default, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.capabilities")
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--write", action="store_true", help="try nothing, only write the page")
    asked = parser.parse_args(arguments)
    try:
        for name in asked.models or ():
            registry.get_spec(name)
        if not asked.write:
            names = smallest() if asked.models is None else asked.models
            measure(names, asked.formats, asked.modes)
        PAGE.write_text(page(), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    main()
