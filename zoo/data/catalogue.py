"""The data sets by name: from (configuration, split) to a source."""

from zoo.data import folders, hub, presets, readable, sources
from zoo.data.sources import Source
from zoo.errors import BadInput
from zoo.settings import DataConfig

DIGITS_VAL = 0.2


def open_split(cfg: DataConfig, split: str) -> Source:
    """Return the images of a split.

    Args:
        cfg: A resolved configuration.
        split: `"train"`, `"val"`, or what the data itself calls one of its splits.

    Raises:
        BadInput: The data is not there, is not what `cfg` says, or has no such split.
    """
    openers = {
        "digits": _digits,
        "folder": folders.open_folder,
        "imagenet": folders.open_folder,
        "cifar10": hub.open_cifar,
        "cifar100": hub.open_cifar,
        "hfds": hub.open_hub,
    }
    source = openers[presets.family(cfg.name)](cfg, split)
    if cfg.skip_corrupt:
        source = readable.without_corrupt(source, split, cfg.num_workers or 0)
    return readable.in_memory(source) if cfg.cache else source


def _digits(cfg: DataConfig, split: str) -> Source:
    if split not in ("train", "val"):
        raise BadInput(f"digits has no split {split!r}; there are train and val")
    whole = sources.digits(presets.size_of(cfg.image_size), cfg.in_chans)
    train, val = sources.held_out(whole, DIGITS_VAL)
    return train if split == "train" else val


def check_same_classes(known: tuple[str, Source], other: tuple[str, Source]) -> None:
    """Raise `BadInput` if two splits, given with their names, have classes of other names."""
    (split, source), (second, opened) = known, other
    names, found = source.class_names, opened.class_names
    if names and found and names != found:
        lacking = sorted(set(names) - set(found))
        extra = sorted(set(found) - set(names))
        parts = [f"lacks {', '.join(lacking[:3])}"] if lacking else []
        parts += [f"also has {', '.join(extra[:3])}"] if extra else []
        raise BadInput(
            f"the classes of split {second} are not those of split {split}: it "
            + (" and ".join(parts) or "orders them otherwise")
        )
