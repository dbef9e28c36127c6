"""What is proven of each model: records of public code, and published weights that were run."""

import functools
import json
import re
from collections import Counter

from tools.project import ROOT, families, finished
from zoo import registry
from zoo.reports import ledger

REFERENCE = ROOT / "tests" / "reference" / "records"


@functools.cache
def records() -> Counter[str]:
    """Return the number of records of public code that tests reproduce, by model."""
    return Counter(json.loads(f.read_text("utf-8"))["model"] for f in REFERENCE.glob("*.json"))


def compared(name: str) -> str:
    """Return how the outputs of a model are compared with those of public code."""
    found = records()
    if name in found:
        return f"{found[name]} record" + ("s" if found[name] > 1 else "")
    family = registry.get_spec(name).family
    kin = any(registry.get_spec(other).family == family for other in found)
    return "another of the family" if kin else "no"


def renumbered(text: str) -> str:
    """Return a text of the README with the present numbers."""
    found, names = records(), finished()
    with_record = {registry.get_spec(name).family for name in found}
    files, accurate, outputs = ledger.counted(ledger.entries(own=False), names)
    others = len(set(names) - found.keys())
    for pattern, now in (
        (r"\d+ models in \d+ families", f"{len(names)} models in {len(families())} families"),
        (r"\d+ records of \d+ models", f"{found.total()} records of {len(found)} models"),
        (
            r"belong to \d+ of \d+ families; the other \d+ models",
            f"belong to {len(with_record)} of {len(families())} families; the other {others}"
            " models",
        ),
        (
            r"Of \d+ published files of weights, \d+ have a verified accuracy; of \d+ more",
            f"Of {files} published files of weights, {accurate} have a verified accuracy; of"
            f" {outputs} more",
        ),
    ):
        text = re.sub(pattern.replace(" ", r"\s+"), now, text)
    return text
