"""Write the generated files of the repository, and find out which are out of date."""

from collections.abc import Sequence
from pathlib import Path

from tools import (
    capabilities,
    counts,
    figures,
    key_lists,
    latencies,
    models_page,
    picture,
    readme_table,
)
from tools.project import ROOT, checked_root, finished, members, smallest
from zoo import registry
from zoo.command_line import help as settings_help
from zoo.errors import BadInput

WRITE = "run `make generated`"
CONFIGURATION = ROOT / "docs" / "configuration.md"


def pages() -> dict[Path, str]:
    """Return what each page should contain, from facts and stored records.

    Raises:
        BadInput: The README has no place for the model table.
    """
    counted, records = counts.read(), latencies.read()
    readme = readme_table.FILE.read_text("utf-8")
    return {
        models_page.FILE: models_page.render(counted, records),
        readme_table.FILE: readme_table.render(readme, counted, records),
        latencies.TABLE: latencies.render(counted, records),
        figures.FILE: figures.render(counted, records),
        capabilities.PAGE: capabilities.render(),
        CONFIGURATION: settings_help.page(),
    }


def write() -> None:
    """Count models and list parameter names where that is missing, and write all pages.

    Raises:
        BadInput: The tools do not run from a checkout, or the README has no place for the table.
    """
    checked_root()
    _write(counts.FILE, counts.render(counts.up_to_date(counts.read())))
    for name in key_lists.missing():
        _write(key_lists.file_of(name), key_lists.render_named(name))
    for file, text in pages().items():
        _write(file, text)
    if not picture.is_current(latencies.read()):
        _write(picture.FILE, picture.render(latencies.read()))


def write_family(family: str, *, measure: bool = False) -> None:
    """Write every generated file of a family, and list its parameter names anew.

    Args:
        family: A file `zoo/facts/<family>.yaml`.
        measure: Also measure latencies and try all exports on this machine, which takes minutes to
            an hour. What is not measured stays marked as such.

    Raises:
        ZooError: The family is unknown or in progress, or a measurement failed.
    """
    checked_root()
    names = members(family)
    for name in smallest():
        if name in names:
            _write(key_lists.file_of(name), key_lists.render_named(name))
    try:
        if measure:
            latencies.measure(names)
            capabilities.measure([name for name in smallest() if name in names])
    finally:  # an interrupted or failed measurement has stored others
        write()


def problems() -> list[str]:
    """Return a line for each generated file that is not what facts and records make it."""
    checked_root()
    counted = counts.read()
    names = finished()
    stale = [name for name in names if not counts.is_current(name, counted)]
    stale += sorted(set(counted) - set(names))
    if stale:
        return [f"{_relative(counts.FILE)} is out of date for {', '.join(stale)}: {WRITE}"]
    missing = [key_lists.file_of(name) for name in key_lists.missing()]
    found = [f"{_relative(file)} does not list the smallest model: {WRITE}" for file in missing]
    known = {key_lists.file_of(name) for name in smallest()}
    unknown = sorted(set(key_lists.FOLDER.glob("*.txt")) - known)
    found += [f"{_relative(file)} belongs to no model: delete it" for file in unknown]
    found += [
        f"{_relative(file)} is out of date: {WRITE}"
        for file, text in pages().items()
        if not file.is_file() or file.read_text("utf-8") != text
    ]
    if not picture.is_current(latencies.read()):
        found.append(f"{_relative(picture.FILE)} is out of date: {WRITE}")
    return found


def check() -> None:
    """Check all generated files, and print what is not measured or tested.

    Raises:
        BadInput: A file is out of date.
    """
    if found := problems():
        raise BadInput("; ".join(found))
    by_model = latencies.by_model(latencies.read())
    _print_gaps(
        "not measured", "make results",
        [name for name in finished() if not latencies.is_measured(name, by_model)],
    )  # fmt: skip
    _print_gaps("exports not tested", "python -m tools capabilities", capabilities.untested())


def _print_gaps(what: str, command: str, names: Sequence[str]) -> None:
    families = dict.fromkeys(registry.get_spec(name).family for name in names)
    if names:
        print(f"{what}: {len(names)} models of {', '.join(families)} ({command})")


def _write(file: Path, text: str) -> None:
    """Write a file unless it has this text already, and print its path."""
    if file.is_file() and file.read_text("utf-8") == text:
        return
    file.write_text(text, "utf-8")
    print(f"wrote {_relative(file)}")


def _relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()
