"""Merge the settings saved with a checkpoint or an artefact with those that the user set.

This is the only place that does so, for training, resuming, evaluating and exporting alike. The
rule: a saved group (`model`, `data`, `train`) replaces the composed one, unless the user named
another model or data set; keys that the user set win.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.blocks.sizes import pair
from zoo.errors import BadInput, BadWeights, first_line
from zoo.fetch import local_file
from zoo.settings import DataConfig, ModelConfig, TrainRun
from zoo.training.checkpoint import is_own
from zoo.weights import QAT_KEY, read_checkpoint, run_checkpoint

Explicit = Mapping[str, Any]

# Settings that may differ when a run is resumed: none of them changes what was computed so far.
MAY_CHANGE = (
    "train.epochs",
    "train.stop_at_epoch",
    "train.limit_val_batches",
    "train.accelerator",
    "train.devices",
    "train.num_nodes",
    "train.loggers",
    "train.log_every",
    "train.progress",
    "data.root",
    "data.num_workers",
    "data.cache",
)


@dataclass(frozen=True)
class SavedWeights:
    """A file of weights, and what it says about itself.

    Attributes:
        source: As the user wrote it: a file, a run folder or an address.
        path: The file.
        content: Everything in it.
    """

    source: str
    path: Path
    content: dict[str, Any]

    @property
    def is_run(self) -> bool:
        """Whether `train.py` wrote it; only then do the other properties have values."""
        return is_own(self.content)

    @property
    def is_qat(self) -> bool:
        """Whether it comes from quantisation-aware training."""
        return self.is_run and QAT_KEY in self.content

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of `zoo.create_model`."""
        return self.content["model"] if self.is_run else {}

    @property
    def groups(self) -> dict[str, Any]:
        """The saved settings: groups `model`, `data` and `train`."""
        return self.content.get("config", {}) if self.is_run else {}

    @property
    def class_names(self) -> list[str] | None:
        """Class names of the training data."""
        return self.content["data"]["class_names"] if self.is_run else None

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the training data."""
        return self.content["data"]["num_classes"] if self.is_run else None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images were prepared for evaluation."""
        return self.content["data"]["preprocessing"] if self.is_run else {}


def read_weights(source: str) -> SavedWeights:
    """Read a file, the best checkpoint of a run folder, or an address.

    Raises:
        BadWeights: It cannot be read.
    """
    path = local_file(source)
    path = run_checkpoint(path) if path.is_dir() else path
    return SavedWeights(source, path, read_checkpoint(path))


def merge(settings: Any, saved: Mapping[str, Any], explicit: Explicit, source: object) -> Any:
    """Return `settings` with the groups of `saved`, by the rule at the top of this module.

    Args:
        settings: The dataclass of a command.
        saved: Some of its groups, each as a dictionary.
        explicit: Dotted keys that the user set, with their values.
        source: Where `saved` comes from, for errors.

    Raises:
        BadInput: `saved` has keys that this version of the package does not know.
    """
    groups = {}
    for group, values in saved.items():
        named = values.get("name")
        if explicit.get(f"{group}.name", named) != named:
            continue
        changes = {
            key.removeprefix(f"{group}."): value
            for key, value in explicit.items()
            if key.startswith(f"{group}.")
        }
        try:
            merged = OmegaConf.merge(
                OmegaConf.structured(type(getattr(settings, group))), values, changes
            )
            groups[group] = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise BadInput(
                f"{source} was written by another version of this package: {first_line(error)}"
            ) from error
    return dataclasses.replace(settings, **groups)


def resume(settings: TrainRun, saved: dict[str, Any], explicit: Explicit, path: Path) -> TrainRun:
    """Return the settings that continue a run: the saved ones with the few changes that are safe.

    Args:
        settings: With `train.resume`.
        saved: The settings in the checkpoint.
        explicit: Dotted keys that the user set.
        path: The checkpoint.

    Raises:
        BadInput: `explicit` contradicts `saved` in a key that may not change, or `saved` has keys
            that this version does not know.
    """
    changes: dict[str, Any] = {}
    for key, value in explicit.items():
        group, _, name = key.partition(".")
        before = saved.get(group, {}).get(name)
        if key == "train.resume" or before == value:
            continue
        if key not in MAY_CHANGE:
            raise BadInput(
                f"{key}={value} conflicts with train.resume: the run of {path} has {key}={before};"
                f" leave it out or start a new run (keys that may change: {', '.join(MAY_CHANGE)})"
            )
        changes[key] = value
    train = {**saved["train"], "stop_at_epoch": None, "resume": settings.train.resume}
    return merge(settings, {**saved, "train": train}, changes, path)


def start_from(settings: TrainRun, saved: SavedWeights, explicit: Explicit) -> TrainRun:
    """Return the settings of a run that continues another one by other means (`train.qat`).

    Raises:
        BadWeights: `saved` has the weights of another model.
    """
    if not saved.is_run:
        return settings
    check_same_model(settings.model, saved, explicit, "model.checkpoint_path")
    model = {**saved.groups["model"], "pretrained": False, "checkpoint_path": saved.source}
    return merge(settings, {"model": model, "data": saved.groups["data"]}, explicit, saved.source)


def describe_model(
    settings: Any, saved: SavedWeights | None, explicit: Explicit
) -> tuple[Any, dict[str, Any]]:
    """Return the settings with the saved model and data, and the arguments of `create_model`.

    Args:
        settings: `EvalRun` or `ExportRun`.
        saved: What `settings.weights` names; None if it names nothing.
        explicit: Dotted keys that the user set.

    Raises:
        BadInput: Weights are named twice.
        BadWeights: `saved` has the weights of another model.
    """
    arguments = model_arguments(settings.model)
    if saved is None:
        return settings, arguments
    for key in ("pretrained", "checkpoint_path"):
        if arguments.get(key):
            raise BadInput(f"weights and model.{key} both name weights; give one of them")
    if not saved.is_run:
        return settings, arguments
    check_same_model(settings.model, saved, explicit, "weights")
    groups = {
        group: dict(saved.groups[group]) for group in ("model", "data") if group in saved.groups
    }
    if "model" in groups:
        groups["model"] |= {"pretrained": False, "checkpoint_path": None}
    merged = merge(settings, groups, explicit, saved.source)
    set_keys = {key.removeprefix("model.") for key in explicit if key.startswith("model.")}
    changed = model_arguments(merged.model, set_keys)
    return merged, {**saved.model, **changed, "name": saved.model["name"]}


def check_same_model(model: ModelConfig, saved: SavedWeights, explicit: Explicit, key: str) -> None:
    """Raise `BadWeights` if the user named another model than that of the saved weights."""
    name = saved.model["name"]
    if "model.name" in explicit and model.name != name:
        raise BadWeights(
            f"{key}={saved.source} is a checkpoint of {name}, not of {model.name}; leave model out,"
            f" or give model={name}"
        )


def model_arguments(model: ModelConfig, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return the arguments of `zoo.create_model` that differ from their defaults, and the name.

    Args:
        model: The group `model`.
        keys: Take these keys instead, whatever their values.
    """
    values = dataclasses.asdict(model)
    defaults = dataclasses.asdict(ModelConfig(name=""))
    extra = values.pop("kwargs")
    if keys is None:
        return {key: value for key, value in values.items() if value != defaults[key]} | extra
    taken = {key: value for key, value in values.items() if key in keys}
    return taken | (extra if any(key.split(".")[0] == "kwargs" for key in keys) else {})


def fit_images(
    data: DataConfig, explicit: Explicit, source: str, shape: Sequence[int | str], size: Sequence
) -> DataConfig:
    """Return the group `data` with images of the size and the channels that a model takes.

    Args:
        data: As resolved.
        explicit: Dotted keys that the user set; `data.image_size` may choose a dynamic size.
        source: What takes the images, for errors.
        shape: B C H W; a name for a dynamic axis.
        size: C H W that it was made for.

    Raises:
        BadInput: The user asked for another size or other channels than it takes.
    """
    channels, *sides = size
    if len(sides) != 2:
        raise BadInput(
            f"{source} takes volumes, and no data set provides them; call zoo.quantize or the"
            " artefact from Python with your own batches"
        )
    if explicit.get("data.in_chans", channels) != channels:
        raise BadInput(
            f"data.in_chans={explicit['data.in_chans']}: {source} takes {channels} channels; leave"
            " it out"
        )
    wanted = explicit.get("data.image_size")
    chosen = list(sides) if wanted is None else list(pair(wanted, "data.image_size"))
    static = [isinstance(side, int) for side in shape[2:]]
    if any(s and a != b for s, a, b in zip(static, chosen, sides, strict=True)):
        raise BadInput(
            f"data.image_size={chosen}: {source} takes images of {sides[0]}x{sides[1]}; leave it"
            " out"
        )
    return dataclasses.replace(data, image_size=chosen, in_chans=channels)
