"""The baseline of `zoo gate`: a file that names an exported file, its latency and its score."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.deploy import files
from zoo.errors import BadInput, first_line
from zoo.reports.writing import replace_files

KIND = "zoo gate 1"  # the kind and the version of the file

# Scores of `report.json` by name: their unit, and the factor to it.
SCORES = {"top1": ("%", 100.0), "mean_iou": ("%", 100.0), "psnr": ("dB", 1.0)}


@dataclass(frozen=True)
class Score:
    """The result of an evaluation.

    Attributes:
        name: `"top1"`, `"mean_iou"` or `"psnr"`.
        value: In percent, or in dB.
        data: Name of the data set.
        images: Number of images.
    """

    name: str
    value: float
    data: str
    images: int

    @property
    def unit(self) -> str:
        return SCORES[self.name][0]


@dataclass(frozen=True)
class Baseline:
    """What later files are compared with.

    Attributes:
        artefact: Path of the exported file, relative to the folder of the baseline.
        sha256: Its checksum.
        threads: Threads per call.
        p50_ms: Its median latency when the baseline was saved, for information.
        low_ms: Lower end of the 95 % interval.
        high_ms: Upper end.
        score: Its score; None if it was not evaluated.
        machine: Description of the machine.
        versions: Versions of the packages.
        date: Date and time in UTC.
    """

    artefact: str
    sha256: str
    threads: int
    p50_ms: float
    low_ms: float | None
    high_ms: float | None
    score: Score | None
    machine: dict[str, Any]
    versions: dict[str, str]
    date: str


def save(path: Path, baseline: Baseline) -> None:
    """Write a baseline.

    Raises:
        BadInput: The file cannot be written.
    """
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path} cannot be written: its folder does not exist")
    content = {"kind": KIND, **asdict(baseline)}
    replace_files({path: json.dumps(content, indent=1, allow_nan=False) + "\n"})


def load(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        BadInput: The file does not exist or is not a baseline.
    """
    if not path.is_file():
        raise BadInput(f"{path} does not exist; `zoo gate {path} <exported file> --save` writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read: {first_line(error)}") from error
    if fault := find_fault(content):
        raise BadInput(f"{path} is not a baseline of `zoo gate`: {fault}; save it again")
    fields = {name: content[name] for name in Baseline.__dataclass_fields__}
    score = content["score"]
    names = Score.__dataclass_fields__
    fields["score"] = Score(**{name: score[name] for name in names}) if score else None
    return Baseline(**fields)


def find_fault(content: Any) -> str:
    """Return why a JSON value is not a baseline; an empty string if it is one."""
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return f"kind is not {KIND!r}"
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("artefact", "sha256", "date"), (str,)),
        **dict.fromkeys(("machine", "versions"), (dict,)),
        **dict.fromkeys(("low_ms", "high_ms"), (int, float, type(None))),
        "threads": (int,),
        "p50_ms": (int, float),
        "score": (dict, type(None)),
    }
    for name, types in kinds.items():
        if name not in content or not isinstance(content[name], types):
            return f"{name} is missing or of the wrong type"
    numbers = [content[key] for key in ("threads", "p50_ms", "low_ms", "high_ms")]
    if any(n is not None and (not math.isfinite(n) or n <= 0) for n in numbers):
        return "threads and latencies must be above 0"
    return _score_fault(content["score"])


def _score_fault(score: Any) -> str:
    if score is None:
        return ""
    if score.get("name") not in SCORES:
        return f"score.name is none of {', '.join(SCORES)}"
    value, images = score.get("value"), score.get("images")
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "score.value is not a number"
    is_valid = isinstance(score.get("data"), str) and type(images) is int and images > 0
    return "" if is_valid else "score.data or score.images is missing or of the wrong type"


def relative(artefact: Path, baseline: Path) -> str:
    """Return the path of a file relative to the folder of the baseline."""
    return Path(os.path.relpath(artefact.absolute(), baseline.absolute().parent)).as_posix()


def score_of(artefact: Path, sha256: str) -> Score | None:
    """Return the score that `zoo eval artefact=...` wrote for exactly this file; None without one.

    Of several evaluations, the one with the most images counts.
    """
    found = []
    for file in sorted(artefact.parent.glob("eval_*/report.json")):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(report, dict) and report.get("sha256") == sha256:
            found += _scores(report)
    return max(found, key=lambda score: score.images, default=None)


def _scores(report: dict[str, Any]) -> list[Score]:
    for name, (_, factor) in SCORES.items():
        value = report.get(name)
        value = value.get("value") if isinstance(value, dict) else value
        if isinstance(value, int | float):
            found = {"name": name, "value": factor * value, "data": report.get("data")}
            found["images"] = report.get("images")
            return [] if _score_fault(found) else [Score(**found)]
    return []


def read_artefact(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], str]:
    """Return an exported file, its manifest and its checksum.

    Raises:
        BadInput: It does not exist, or does not match its manifest.
    """
    artefact, manifest = files.read(path)
    return artefact, manifest, manifest["artefact"]["sha256"]
