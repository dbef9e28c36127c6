"""Open the splits of labelled data sets, skip corrupt images and compare class names."""

from zoo.data import folders, hugging_face, integrity, presets, sources, torchvision_sets
from zoo.data.sources import Source
from zoo.errors import BadInput
from zoo.settings import DataConfig


def open_split(cfg: DataConfig, split: str) -> Source:
    """Return the images of a split.

    Args:
        cfg: A resolved configuration.
        split: `"train"`, `"val"`, or the data set's own name for a split.

    Raises:
        BadInput: The data is missing, contradicts `cfg`, or has no such split.
    """
    openers = {
        "digits": _digits,
        "folder": folders.open_folder,
        "imagenet": folders.open_folder,
        "cifar10": torchvision_sets.open_cifar,
        "cifar100": torchvision_sets.open_cifar,
        "hfds": hugging_face.open_dataset,
    }
    source = openers[presets.family(cfg.name)](cfg, split)
    if cfg.skip_corrupt:
        source = integrity.without_corrupt(source, split, cfg.num_workers or 0)
    return sources.in_memory(source) if cfg.cache else source


def _digits(cfg: DataConfig, split: str) -> Source:
    sources.check_train_or_val(cfg.name, split)
    train, val = sources.split_digits(presets.size_of(cfg.image_size), cfg.in_chans)
    return train if split == "train" else val


def check_same_classes(
    first: str, first_names: list[str] | None, second: str, second_names: list[str] | None
) -> None:
    """Raise `BadInput` if two splits have different class names; None: a split has no names.

    Args:
        first: Name of a split.
        first_names: Its class names in order.
        second: Name of another split.
        second_names: Its class names in order.
    """
    if not first_names or not second_names or first_names == second_names:
        return
    lacking = sorted(set(first_names) - set(second_names))
    extra = sorted(set(second_names) - set(first_names))
    differences = [f"lacks {', '.join(lacking[:3])}"] if lacking else []
    differences += [f"also has {', '.join(extra[:3])}"] if extra else []
    raise BadInput(
        f"splits {first} and {second} have different classes: {second} "
        + (" and ".join(differences) or "has another order")
    )
