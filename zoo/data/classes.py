"""Match the classes of a data set by name with those that a model knows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from zoo.data.listing import shortened
from zoo.data.samplers import rank_and_world
from zoo.errors import BadInput

log = logging.getLogger("zoo.data")


@dataclass(frozen=True)
class KnownClasses:
    """The classes that images are labelled with.

    Attributes:
        count: Number of classes.
        names: Their names in order, if known.
        owner: What has them, for messages: the weights, or the split that was opened first.
        data: Name of the data set, for messages.
        leaves_out: Whether images of other classes are left out; otherwise they are an error.
    """

    count: int
    names: Sequence[str] | None
    owner: str
    data: str = ""
    leaves_out: bool = False
    _warnings: set[str] = field(default_factory=set, repr=False, compare=False)

    def numbers(self, split: str, count: int, names: Sequence[str] | None) -> list[int | None]:
        """Return the number here of each class of a split; None for a class that is unknown.

        Names decide. Where one side has none, the position does.

        Args:
            split: Name of the split, for messages.
            count: Its number of classes.
            names: Names of its classes in order, if known.

        Raises:
            BadInput: The numbers of classes differ and one side has no names, no class is known, or
                a class is unknown and `leaves_out` is false.
        """
        if self.names is None or names is None:
            return self._by_position(count, names)
        index = {name: number for number, name in enumerate(self.names)}
        found = [index.get(name) for name in names]
        unknown = [name for name in names if name not in index]
        missing = [name for name in self.names if name not in set(names)]
        if len(unknown) == len(names) or (unknown and not self.leaves_out):
            raise BadInput(self._differences(split, unknown, missing))
        if unknown:
            self._warn(
                f"split {split}: left out the images of {_classes(unknown)},"
                f" unknown to {self.owner}"
            )
        if missing:
            self._warn(f"split {split} has no images of {_classes(missing)}")
        return found

    def _by_position(self, count: int, names: Sequence[str] | None) -> list[int | None]:
        if not self.leaves_out:  # rows without names: the splits need not show every class
            return list(range(count))
        if count != self.count:
            raise BadInput(
                f"{self.owner} has {self.count} classes, but data.name={self.data} has {count}, and"
                " without class names on both sides they cannot be matched; choose the data that it"
                " was trained on"
            )
        if names != self.names:
            self._warn(
                f"the classes of {self.owner} and of the data are matched by position: one of them"
                " has no class names"
            )
        return list(range(count))

    def _warn(self, text: str) -> None:
        """Log a warning once, although every split is matched."""
        if rank_and_world()[0] == 0 and text not in self._warnings:
            self._warnings.add(text)
            log.warning("%s", text)

    def _differences(self, split: str, unknown: list[str], missing: list[str]) -> str:
        lacking = f"lacks {shortened(missing)}" if missing else ""
        extra = f"also has {shortened(unknown)}" if unknown else ""
        listed = " and ".join(filter(None, (lacking, extra)))
        if self.leaves_out:
            return (
                f"{self.owner} has none of the classes of the data: split {split} {listed}; choose"
                " data with classes that it was trained on"
            )
        return (
            f"splits {self.owner} and {split} have different classes: {split} {listed}; give both"
            " the same folders"
        )


def _classes(names: list[str]) -> str:
    kind = "class" if len(names) == 1 else f"{len(names)} classes:"
    return f"{kind} {shortened(names, 5)}"
