"""Merge the settings saved in a checkpoint or an artefact with those that the user set.

Training, resuming, evaluation and export all follow the same rule. A saved group (`model`, `data`,
`train`) replaces the composed group, and keys that the user set override it. If the user chose
another model or data set, that saved group is ignored.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import merging
from zoo.errors import BadInput, BadWeights, first_line
from zoo.hub_files import is_repository
from zoo.quoting import command_line
from zoo.settings import DataConfig, ModelConfig, TrainRun
from zoo.training.checkpoint import is_zoo_checkpoint
from zoo.training.checkpoint_schema import FORMAT
from zoo.training.checkpoint_schema import check as check_checkpoint
from zoo.weights import QAT_KEY, read_source

Explicit = Mapping[str, Any]

# Settings that may change when a run is resumed: the epochs so far do not depend on them.
MAY_CHANGE = (
    "train.epochs",
    "train.stop_at_epoch",
    "train.patience",
    "train.max_time",
    "train.limit_val_batches",
    "train.accelerator",
    "train.devices",
    "train.num_nodes",
    "train.loggers",
    "train.log_every",
    "train.progress",
    "model.base",
    "train.distill_store",
    "data.root",
    "data.num_workers",
    "data.cache",
)


@dataclass(frozen=True)
class SavedWeights:
    """The content of a file of weights.

    Attributes:
        source: What the user gave: a file, a run folder or a URL.
        path: The local file.
        content: The content of the file.
    """

    source: str
    path: Path
    content: dict[str, Any]

    @property
    def is_run(self) -> bool:
        """Whether `train.py` wrote the file, or a repository describes it; otherwise the other
        properties are empty."""
        return is_zoo_checkpoint(self.content)

    @property
    def is_qat(self) -> bool:
        """Whether the weights come from quantisation-aware training."""
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
        """The preprocessing of images for evaluation."""
        return self.content["data"]["preprocessing"] if self.is_run else {}


@dataclass(frozen=True)
class TrainingStart:
    """What a training run starts from.

    Attributes:
        settings: The resolved settings.
        resumed: The checkpoint to continue from, if any.
        normalisation: `mean`, `std` and `channel_order` that the run of the initial weights used;
            None if unknown.
    """

    settings: TrainRun
    resumed: SavedWeights | None = None
    normalisation: dict[str, Any] | None = None


def read_weights(source: str, *, resumes: bool = False, base: str | None = None) -> SavedWeights:
    """Read a file, a checkpoint of a run folder, a URL, or a repository on the hub.

    Args:
        source: What the user gave.
        resumes: Whether the run will be continued: read the last checkpoint of a run folder
            instead of the best, and require its state of training.
        base: Where the base of the adapters in the file is; None: where training found it.

    Raises:
        BadWeights: The file cannot be read, or is a damaged checkpoint of `train.py`.
    """
    path, content = read_source(source, which="last" if resumes else "best")
    if is_repository(source) and not resumes:
        content = {"format": FORMAT, **content}
    saved = SavedWeights(source, path, content)
    if saved.is_run:
        if resumes and saved.model.get("widths") and "progress" not in saved.content:
            raise BadWeights(
                f"{path} was written by zoo prune, so there is no run to continue; start one with"
                f" model.checkpoint_path={source}"
            )
        check_checkpoint(saved.content, saved.path, resumes=resumes)
        if not resumes and saved.content.get("progress", {}).get("update") == 0:
            command = command_line("train", {"train.resume": source})
            raise BadWeights(
                f"the run of {saved.path} has no update yet; continue it with: {command}"
            )
    if base is not None:
        return dataclasses.replace(saved, content=merging.with_base(saved.content, base, source))
    return saved


def training_start(settings: TrainRun, explicit: Explicit) -> TrainingStart:
    """Resolve the settings of `train.py`: a new run, or one that continues a saved run.

    Raises:
        BadInput: A key contradicts the run to resume.
        BadWeights: The weights to start from cannot be read, or do not fit the settings.
    """
    model, train = settings.model, settings.train
    source = train.resume or model.checkpoint_path
    saved = None
    if source is not None:
        _check_for_checkpoint(train.resume)
        saved = read_weights(source, resumes=train.resume is not None, base=model.base)
    if saved is not None and train.resume is not None:
        settings = _resume(settings, saved, explicit)
    elif saved is not None and train.qat:
        settings = _continue_with_qat(settings, saved, explicit)
    elif saved is not None and saved.is_run and train.adapt != "none":
        settings = _adapt(settings, saved, explicit)
    widths = None if saved is None or train.resume or train.qat else saved.model.get("widths")
    if widths:
        kwargs = {"widths": widths, **settings.model.kwargs}
        settings = dataclasses.replace(
            settings, model=dataclasses.replace(settings.model, kwargs=kwargs)
        )
    model = settings.model
    normalisation = None
    if saved is not None and saved.is_run and model.checkpoint_path is not None:
        keys = ("mean", "std", "channel_order")
        normalisation = {key: saved.preprocessing.get(key) for key in keys}
    return TrainingStart(settings, saved if train.resume is not None else None, normalisation)


def _check_for_checkpoint(resume: str | None) -> None:
    """Raise `BadWeights` if the run to resume was killed before its first checkpoint."""
    if resume is None:
        return
    folder = Path(resume).expanduser()
    is_run = (folder / "checkpoints").is_dir()
    if is_run and not any((folder / "checkpoints").glob("*.ckpt")):
        raise BadWeights(
            f"the run of {resume} ended before its first checkpoint, so there is nothing to resume;"
            " start it again"
        )


def read_command_weights(settings: Any) -> SavedWeights | None:
    """Read the key `weights` of a command, or `model.checkpoint_path`; None if neither is set.

    Args:
        settings: `EvalRun` or `ExportRun`.

    Raises:
        BadInput: Several settings name weights.
        BadWeights: The weights cannot be read.
    """
    model = settings.model
    given = {
        "weights": settings.weights,
        "model.pretrained": model.pretrained or None,
        "model.checkpoint_path": model.checkpoint_path,
    }
    named = [key for key, value in given.items() if value is not None]
    if len(named) > 1:
        raise BadInput(f"{' and '.join(named[:2])} both name weights; give only one of them")
    source = given["weights"] if given["weights"] is not None else given["model.checkpoint_path"]
    if source is None and model.base is not None:
        raise BadInput(f"model.base={model.base} has no effect without weights; leave it out")
    return None if source is None else read_weights(source, base=model.base)


def merge(settings: Any, saved: Mapping[str, Any], explicit: Explicit, source: object) -> Any:
    """Return `settings` with the groups of `saved`, by the rule at the top of this module.

    Args:
        settings: The dataclass of a command.
        saved: Saved groups, each as a dictionary.
        explicit: Dotted keys that the user set, with their values.
        source: The file with `saved`, for messages.

    Raises:
        BadInput: `saved` has keys that this version of the package does not have.
    """
    groups = {}
    for group, values in saved.items():
        name = values.get("name")
        if explicit.get(f"{group}.name", name) != name:
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
                f"{source} was written by another version of this package; use that version"
                f" ({first_line(error)})"
            ) from error
    return dataclasses.replace(settings, **groups)


def _resume(settings: TrainRun, saved: SavedWeights, explicit: Explicit) -> TrainRun:
    """Return the saved settings with changes to `MAY_CHANGE` keys.

    Raises:
        BadInput: `explicit` changes another key.
        BadWeights: `saved` is not a checkpoint of `train.py`.
    """
    if not saved.is_run:
        raise BadWeights(
            f"{saved.path} is not a checkpoint of train.py, so there is no run to continue"
        )
    changes: dict[str, Any] = {}
    for key, value in explicit.items():
        group, _, name = key.partition(".")
        before = saved.groups.get(group, {}).get(name)
        if key == "train.resume" or before == value:
            continue
        if key not in MAY_CHANGE:
            raise BadInput(
                f"{key}={value} conflicts with train.resume: the run of {saved.path} has"
                f" {key}={before}; leave it out or start a new run (keys that may change:"
                f" {', '.join(MAY_CHANGE)})"
            )
        changes[key] = value
    train = {**saved.groups["train"], "stop_at_epoch": None, "resume": settings.train.resume}
    groups = {**saved.groups, "train": train}
    if merging.KEY in saved.content:
        place = saved.content[merging.KEY]["base"]["source"]
        groups["model"] = {**saved.groups["model"], "base": place}
    return merge(settings, groups, changes, saved.path)


def _continue_with_qat(settings: TrainRun, saved: SavedWeights, explicit: Explicit) -> TrainRun:
    """Return the settings with model and data of the float run that `train.qat` starts from.

    Raises:
        BadWeights: The saved weights belong to another model, or are quantisation-aware.
    """
    if not saved.is_run:
        return settings
    if saved.is_qat:
        raise BadWeights(
            f"{saved.source} comes from train.qat already; continue it with"
            f" train.resume={saved.source}, or start from the float run"
        )
    check_same_model(settings.model, saved, explicit, "model.checkpoint_path")
    model = {**saved.groups["model"], "pretrained": False, "checkpoint_path": saved.source}
    return merge(settings, {"model": model, "data": saved.groups["data"]}, explicit, saved.source)


def _adapt(settings: TrainRun, saved: SavedWeights, explicit: Explicit) -> TrainRun:
    """Return the settings with the model of the run that adapters are trained for.

    Raises:
        BadWeights: The user chose another model.
    """
    check_same_model(settings.model, saved, explicit, "model.checkpoint_path")
    own = {"pretrained": False, "checkpoint_path": saved.source, "base": None}
    own |= {"num_classes": None, "in_chans": None}
    return merge(settings, {"model": {**saved.groups["model"], **own}}, explicit, saved.source)


def describe_model(
    settings: Any, saved: SavedWeights | None, explicit: Explicit
) -> tuple[Any, dict[str, Any]]:
    """Return the settings with the saved model and data, and the arguments of `create_model`.

    Args:
        settings: `EvalRun` or `ExportRun`.
        saved: The result of `read_command_weights`.
        explicit: Dotted keys that the user set, with their values.

    Raises:
        BadWeights: The saved weights belong to another model.
    """
    if saved is not None:  # `model.checkpoint_path` is what was read
        settings = dataclasses.replace(
            settings, model=dataclasses.replace(settings.model, checkpoint_path=None, base=None)
        )
        read = ("model.checkpoint_path", "model.base")
        explicit = {key: v for key, v in explicit.items() if key not in read}
    arguments = model_arguments(settings.model)
    if saved is None or not saved.is_run:
        return settings, arguments
    check_same_model(settings.model, saved, explicit, "weights")
    groups = {
        group: dict(saved.groups[group]) for group in ("model", "data") if group in saved.groups
    }
    if "model" in groups:
        groups["model"] |= {"pretrained": False, "checkpoint_path": None, "base": None}
    merged = merge(settings, groups, explicit, saved.source)
    set_keys = {key.removeprefix("model.") for key in explicit if key.startswith("model.")}
    changed = model_arguments(merged.model, set_keys)
    return merged, {**saved.model, **changed, "name": saved.model["name"]}


def check_same_model(model: ModelConfig, saved: SavedWeights, explicit: Explicit, key: str) -> None:
    """Raise `BadWeights` if the user chose another model than that of the saved weights."""
    name = saved.model["name"]
    if "model.name" in explicit and model.name != name:
        raise BadWeights(
            f"{key}={saved.source} is a checkpoint of {name}, not of {model.name}; leave out"
            f" model={model.name}, or give weights of that model"
        )


def model_arguments(model: ModelConfig, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return the arguments of `zoo.create_model` that differ from their defaults, and the name.

    Args:
        model: The group `model`.
        keys: If given, return these keys instead, also if they have their default values.
    """
    values = dataclasses.asdict(model)
    defaults = dataclasses.asdict(ModelConfig(name=""))
    extra = values.pop("kwargs")
    if keys is None:
        return {key: value for key, value in values.items() if value != defaults[key]} | extra
    chosen = {key: value for key, value in values.items() if key in keys}
    return chosen | (extra if any(key.split(".")[0] == "kwargs" for key in keys) else {})


def fit_images(
    data: DataConfig,
    explicit: Explicit,
    source: str,
    shape: Sequence[int | str],
    size: Sequence,
    *,
    advice: str = "leave it out",
) -> DataConfig:
    """Return the group `data` with the image size and channels that an artefact accepts.

    Args:
        data: The resolved group `data`.
        explicit: Dotted keys that the user set; `data.image_size` selects the size if it is
            dynamic.
        source: The artefact, for messages.
        shape: Input shape B C H W, with a name instead of a number for each dynamic axis.
        size: Default image size C H W.
        advice: What to do about another image size, for messages.

    Raises:
        BadInput: The user set a size or channels that the artefact does not accept.
    """
    channels, *sides = size
    if len(sides) != 2:
        raise BadInput(
            f"{source} takes volumes, which no data set provides; call zoo.quantize or the"
            " artefact from Python with your own batches"
        )
    if explicit.get("data.in_chans", channels) != channels:
        raise BadInput(
            f"data.in_chans={explicit['data.in_chans']}: {source} takes {channels} channels; leave"
            " it out"
        )
    requested = explicit.get("data.image_size")
    chosen = list(sides) if requested is None else _both(requested)
    is_static = [isinstance(side, int) for side in shape[2:]]
    if any(s and a != b for s, a, b in zip(is_static, chosen, sides, strict=True)):
        raise BadInput(
            f"data.image_size={chosen}: {source} only takes images of {sides[0]}x{sides[1]};"
            f" {advice}"
        )
    return dataclasses.replace(data, image_size=chosen, in_chans=channels)


def _both(size: Any) -> list[Any]:
    """Return an image size as height and width; the data set checks the values."""
    return list(size) if isinstance(size, list | tuple) else [size, size]
