"""`results/counts.json`: parameters, multiply-accumulates and traffic of each model at its size."""

import json
from typing import Any

from tools.project import ROOT, finished
from zoo import registry

FILE = ROOT / "results" / "counts.json"

Counts = dict[str, dict[str, Any]]  # of each model its params, macs, input (C H W) and moved_bytes


def read() -> Counts:
    """Return the stored counts; none if there is no file."""
    return json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}


def render(counts: Counts) -> str:
    """Return the text of the file, a line for each model."""
    rows = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(counts.items()))
    return "{\n" + ",\n".join(rows) + "\n}\n"


def is_current(name: str, counts: Counts) -> bool:
    """Return whether the counts of a model are for the parameters and size of its facts."""
    facts = registry.get_spec(name).facts
    same = {"params": facts["params"], "input": facts["input"]["size"]}
    return same.items() <= counts.get(name, {}).items() and "moved_bytes" in counts[name]


def up_to_date(counts: Counts) -> Counts:
    """Return the counts of all finished models; models that are new or have changed are counted."""
    return {
        name: counts[name] if is_current(name, counts) else count_model(name) for name in finished()
    }


def count_model(name: str) -> dict[str, Any]:
    """Count a model, not fused, for one image of its own size."""
    from zoo.counting.count import count
    from zoo.factory import create_model

    size = registry.get_spec(name).facts["input"]["size"]
    counted = count(create_model(name).eval(), (1, *size))
    return {
        "params": counted.params,
        "macs": counted.macs,
        "input": size,
        "moved_bytes": counted.moved_bytes,
    }
