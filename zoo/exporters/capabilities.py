"""What can be exported to what: `python -m zoo.exporters.capabilities` tries it and writes it down.

The smallest variant of each family and task is exported to each format in each mode, with weights
that tell, and compared. `results/capabilities.json` keeps what came out, with versions and date;
`docs/capabilities.md` is written from it. What was tried before stays until it is tried again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import BadInput, ZooError
from zoo.exporters.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "results" / "capabilities.json"
PAGE = ROOT / "docs" / "capabilities.md"
MODES: dict[str, dict[str, bool]] = {
    "static": {"dynamic_batch": False},
    "dynamic batch": {"dynamic_batch": True},
    "dynamic size": {"dynamic_batch": False, "dynamic_size": True},
    "fp16": {"dynamic_batch": False, "half": True},
}
LIMIT = 240  # seconds for a cell


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
    """Export a model in one mode, and return whether that works and else why not."""
    from zoo.exporters import Origin, export
    from zoo.factory import create_model
    from zoo.reparam import shake

    model = shake(create_model(name)).eval()
    size = small_input(name)
    cell = {"model": name, "format": format, "mode": mode, "input": list(size)}
    begin = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = export(
                model, format, folder, input_size=size, origin=Origin(name), **MODES[mode]
            )
        agreement = made.agreement
        compared = agreement is not None
        said = {
            "works": agreement is None or agreement.proven,
            "reason": None if compared else "converted and validated, not compared",
            "error_of_spread": agreement.max_rel_error if agreement else None,
            "multiple": made.manifest["input"].get("multiple"),
        }
        if compared and not agreement.proven:
            said["reason"] = "the outputs hardly differ between images: not proven equal"
    except ZooError as error:
        said = {"works": False, "reason": str(error), "error": type(error).__name__}
    except Exception as error:  # what is not foreseen belongs in the table, too
        said = {"works": False, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {**cell, **said, "seconds": round(time.perf_counter() - begin, 1)}


def measure(names: Sequence[str], kinds: Sequence[str], modes: Sequence[str]) -> None:
    """Try every combination, each in a process of its own, and keep what came out at once."""
    for format in kinds:
        for name in names:
            for mode in modes:
                cell = _refused(name, format, mode) or _apart(name, format, mode)
                _keep(cell)
                state = "works" if cell["works"] else cell["reason"]
                print(f"{name} {format} {mode}: {state}", flush=True)


def _refused(name: str, format: str, mode: str) -> dict[str, Any] | None:
    """What the format cannot do in principle needs no process."""
    reasons = [FORMATS[format].cannot[key] for key, on in MODES[mode].items()
               if on and not FORMATS[format].can(key)]  # fmt: skip
    if not reasons:
        return None
    return {
        "model": name,
        "format": format,
        "mode": mode,
        "input": list(small_input(name)),
        "works": False,
        "reason": reasons[0],
        "error": "NotExportable",
        "seconds": 0.0,
    }


def _apart(name: str, format: str, mode: str) -> dict[str, Any]:
    code = (
        "import json; from zoo.exporters.capabilities import attempt; "
        f"print('\\n' + json.dumps(attempt({name!r}, {format!r}, {mode!r})))"
    )
    failed = {
        "model": name,
        "format": format,
        "mode": mode,
        "input": list(small_input(name)),
        "works": False,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return {**failed, "reason": f"took longer than {LIMIT} s", "seconds": float(LIMIT)}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"model"'):
            return json.loads(line)
    return {**failed, "reason": f"the process ended with {done.returncode}", "seconds": None}


def _keep(cell: dict[str, Any]) -> None:
    from zoo.profiling.machine import describe_machine, versions

    stamp = {"versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    key = ("model", "format", "mode")
    cells = [c for c in read()["cells"] if any(c[k] != cell[k] for k in key)]
    cells = sorted([*cells, {**cell, **stamp}], key=lambda c: tuple(str(c[k]) for k in key))
    content = {
        "command": "python -m zoo.exporters.capabilities",
        "machine": describe_machine(),
        "cells": cells,
    }
    RECORDS.parent.mkdir(exist_ok=True)
    RECORDS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """Return what was tried; nothing where nothing was."""
    if not RECORDS.exists():
        return {"cells": []}
    return json.loads(RECORDS.read_text(encoding="utf-8"))


def page() -> str:
    """Return the page of all that was tried."""
    content = read()
    cells = {(c["model"], c["format"], c["mode"]): c for c in content["cells"]}
    names = sorted({name for name, _, _ in cells})
    reasons: dict[str, int] = {}
    lines = [
        "# Capabilities",
        "",
        "Written by `python -m zoo.exporters.capabilities` from `results/capabilities.json`; not",
        "by hand. The smallest variant of each family and task, fused, exported at a small size,",
        "loaded again and compared with the model. **yes**: equal; a number in brackets is the",
        "reason why not; a dot has not been tried. With an open size, `x32` says that sides are",
        "multiples of 32. Of Core ML, **yes** is: converted and validated, not run (export.md).",
        "",
        "Each cell: static / dynamic batch / dynamic size / fp16.",
        "",
        "| model | " + " | ".join(FORMATS) + " |",
        "|---|" + "---|" * len(FORMATS),
    ]
    for name in names:
        row = [" / ".join(_mark(cells.get((name, f, mode)), reasons) for mode in MODES)
               for f in FORMATS]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    lines += ["", "## Made with", ""]
    stamps = sorted({json.dumps(c["versions"]) for c in content["cells"]})
    dates = sorted(c["date"][:10] for c in content["cells"])
    lines += [", ".join(f"{k} {v}" for k, v in json.loads(stamp).items()) for stamp in stamps]
    lines += ["", f"{dates[0]} to {dates[-1]}" if dates else "nothing tried"]
    return "\n".join(lines) + "\n"


def _mark(cell: dict[str, Any] | None, reasons: dict[str, int]) -> str:
    if cell is None:
        return "."
    if not cell["works"]:
        return f"[{reasons.setdefault(cell['reason'], len(reasons) + 1)}]"
    multiple = cell.get("multiple")
    return "yes" + (f" x{multiple}" if multiple not in (None, 1) else "")


def main(arguments: list[str] | None = None) -> None:
    """Try what is asked, all by default, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m zoo.exporters.capabilities")
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
