"""Split a folder of images so that copies of an image are in the same half."""

from collections import defaultdict
from collections.abc import Sequence

from zoo.data.holdout import position

SHARE = 0.2  # of the images, held out for validation


def assign(
    keys: Sequence[str],
    labels: Sequence[int],
    copies: Sequence[Sequence[int]],
    share: float = SHARE,
) -> list[str]:
    """Return the half of each image: `"train"` or `"val"`.

    The half depends on a hash of the key, as with `data.val_split`. A group of copies follows its
    first key. Copies in several classes are for training: their label is unknown. If all images of
    a class are copies of each other, they are split one by one: each half needs the class.

    Args:
        keys: What identifies each image.
        labels: The class of each image.
        copies: Groups of indices of images that are copies of each other.
        share: Share of the images to hold out.
    """
    halves = ["train"] * len(keys)
    in_group = {index for group in copies for index in group}
    units = [list(group) for group in copies]
    units += [[index] for index in range(len(keys)) if index not in in_group]
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for unit in units:
        classes = {labels[index] for index in unit}
        if len(classes) == 1:
            by_class[classes.pop()].append(unit)
    for own in by_class.values():
        if len(own) < 2:
            own = [[index] for unit in own for index in unit]
        placed = sorted((position(min(keys[index] for index in unit)), unit) for unit in own)
        held = sum(where < share for where, _ in placed)
        held = min(max(held, 1), len(placed) - 1)
        for _, unit in placed[:held]:
            for index in unit:
                halves[index] = "val"
    return halves
