"""List the image files of a folder, and report what is left out."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.samplers import rank_and_world
from zoo.errors import BadInput
from zoo.images import OTHER_FORMATS, kind_of, one_line

_FEW = 3  # examples in a line

log = logging.getLogger("zoo.data")


@dataclass
class Listing:
    """What a listing left out.

    Attributes:
        others: Number of images of other formats, by extension.
        odd: What is neither a file nor a folder that can be read, in words.
        loops: Links to folders that are listed already.
    """

    others: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def report(self, where: str) -> None:
        """Log a warning for each kind of entry that was left out.

        Args:
            where: What was listed, for the messages.
        """
        if rank_and_world()[0] != 0:
            return
        if self.others:
            kinds = ", ".join(f"{count} {ext}" for ext, count in sorted(self.others.items()))
            log.warning(
                "%s: left out images of other formats (%s); convert them to jpg or png to use them",
                where,
                kinds,
            )
        if self.odd:
            log.warning("%s: left out %s", where, shortened(self.odd))
        if self.loops:
            log.warning(
                "%s: left out links to folders that are listed already: %s",
                where,
                shortened(self.loops),
            )


def list_files(
    folders: Sequence[Path], extensions: tuple[str, ...], *, recursive: bool = True
) -> tuple[Listing, list[list[str]]]:
    """List the files in some folders and their subfolders.

    Hidden files and folders are left out without a word. A link that leads back to one of the
    folders, to a folder above them or to one that was listed before is left out, and so is
    everything that is neither a file nor a folder: reading a FIFO would never end. Nothing is
    opened.

    Args:
        folders: The folders.
        extensions: Accepted extensions in lower case, with their dots.
        recursive: Whether to list subfolders, too.

    Returns:
        The listing, and for each folder the paths of its files, sorted by folder and name.

    Raises:
        BadInput: A folder cannot be listed.
    """
    listing = Listing()
    seen = {_identity(parent) for folder in folders for parent in folder.resolve().parents}
    first = []
    for folder in folders:
        identity = _identity(folder)
        first.append(identity not in seen)
        seen.add(identity)
    paths = []
    for folder, is_first in zip(folders, first, strict=True):
        if not is_first:
            listing.loops.append(str(folder))
        known = seen if recursive else None
        found = sorted(_walk(folder, extensions, listing, known)) if is_first else []
        paths.append([os.path.join(parent, name) for parent, name in found])
    return listing, paths


def _identity(folder: str | Path) -> tuple[int, int]:
    """Return device and inode of a folder, which are the same by every path that leads to it."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise BadInput(f"cannot list {folder}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _walk(
    folder: Path, extensions: tuple[str, ...], listing: Listing, seen: set[tuple[int, int]] | None
) -> Iterator[tuple[str, str]]:
    """Yield folder and name of each file; subfolders are only visited if `seen` is given."""
    waiting = [str(folder)]
    while waiting:
        parent = waiting.pop()
        for entry in entries(parent):
            extension = os.path.splitext(entry.name)[1].lower()
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link that leads to itself
                is_folder = is_file = False
            if is_folder:
                if seen is None:
                    continue
                identity = _identity(entry.path)
                if identity in seen:
                    listing.loops.append(entry.path)
                else:
                    seen.add(identity)
                    waiting.append(entry.path)
            elif extension in extensions:
                if is_file:
                    yield parent, entry.name
                else:
                    listing.odd.append(f"{entry.path} ({_kind(entry)})")
            elif extension in OTHER_FORMATS:
                listing.others[extension] += 1


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return kind_of(entry.stat().st_mode)
    except OSError:
        return "a broken link"


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden ones.

    Raises:
        BadInput: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise BadInput(f"cannot list {folder}: {error.strerror}") from error


def extensions_text(extensions: tuple[str, ...]) -> str:
    """Return file extensions as words: `jpg png`."""
    return " ".join(extension.lstrip(".") for extension in extensions)


def shortened(names: list[str], most: int = _FEW) -> str:
    """Return the first names as a list in words, and how many more there are."""
    return ", ".join(map(one_line, names[:most])) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )
