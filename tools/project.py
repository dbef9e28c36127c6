"""The checkout that the tools write to, and the models that its pages list."""

from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


def finished() -> list[str]:
    """List the models of the package, except those whose facts give a `status`."""
    return [
        name
        for name in registry.list_models()
        if registry.is_packaged(name) and "status" not in registry.get_spec(name).facts
    ]


def families() -> dict[str, list[str]]:
    """Return the finished models of each family, in alphabetical order."""
    found: dict[str, list[str]] = {}
    for name in finished():
        found.setdefault(registry.get_spec(name).family, []).append(name)
    return dict(sorted(found.items()))


def smallest() -> list[str]:
    """Return the variant with the fewest parameters of each family, task and number of axes."""
    found: dict[tuple[Any, ...], str] = {}
    for name in sorted(finished(), key=lambda name: registry.get_spec(name).facts["params"]):
        spec = registry.get_spec(name)
        found.setdefault((spec.family, spec.task, axes(name)), name)
    return sorted(found.values())


def axes(name: str) -> int:
    """Return the number of spatial axes of a model's input: 2 for images, 3 for volumes."""
    return len(registry.get_spec(name).facts["input"]["size"]) - 1


def members(family: str) -> list[str]:
    """Return the finished models of a family.

    Raises:
        BadInput: The family is unknown or in progress.
    """
    known = families()
    if family in known:
        return known[family]
    others = [registry.get_spec(name) for name in registry.list_models()]
    if unfinished := [spec.name for spec in others if spec.family == family]:
        status = registry.get_spec(unfinished[0]).facts.get("status", "not a part of the package")
        raise BadInput(
            f"family {family!r} is {status}; remove `status` from zoo/facts/{family}.yaml first"
        )
    raise BadInput(f"unknown family {family!r}: zoo/facts/{family}.yaml does not exist")


def checked_root() -> Path:
    """Return the root of the checkout.

    Raises:
        BadInput: The tools do not run from a checkout of the project.
    """
    missing = [folder for folder in ("docs", "results", "tests") if not (ROOT / folder).is_dir()]
    if missing:
        raise BadInput(f"{ROOT} is not a checkout of the project: {missing[0]}/ does not exist")
    return ROOT
