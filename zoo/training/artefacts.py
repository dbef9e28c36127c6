"""`eval.py artefact=...`: an export on a data set, by the code that judges checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn import functional as F

from zoo.data import DataConfig, create_datamodule
from zoo.data.presets import size_of
from zoo.errors import BadInput
from zoo.exporters import files
from zoo.runtimes import first_line
from zoo.runtimes.artefacts import Loaded
from zoo.training import overrides as command_line
from zoo.training import run_folder
from zoo.training.judging import Subject, judge
from zoo.training.tasks import shown

Manifest = dict[str, Any]
PREPARED = ("mean", "std", "interpolation", "crop_pct")


class Answers:
    """An artefact that is called as its model would be: normalised images in, logits out.

    Args:
        artefact: Loaded.
        manifest: What is said of it.
        data: What gives the images, and knows how it normalised them.
    """

    def __init__(self, artefact: Loaded, manifest: Manifest, data: Any) -> None:
        self.artefact, self.data = artefact, data
        self.takes_pixels = manifest["input"].get("dtype") == "uint8"
        self.answer = manifest.get("postprocessing")

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, or what is judged alike, of images N C H W."""
        if self.takes_pixels:  # the bytes that the images were made of, again
            images = (255 * shown(self.data, images)).round().clamp(0, 255).byte()
        found = torch.from_numpy(self.artefact(images.contiguous().numpy()))
        if self.answer == "softmax":  # logarithms have the same order and the same cross-entropy
            return found.clamp_min(torch.finfo(found.dtype).tiny).log()
        if self.answer == "argmax":
            return self._chosen(found.long())
        return found

    def _chosen(self, numbers: Tensor) -> Tensor:
        count = self.data.num_classes
        if int(numbers.max()) >= count:
            raise BadInput(f"the artefact answers class {int(numbers.max())}, the data has {count}")
        return F.one_hot(numbers, count).movedim(-1, 1).float()


def evaluate(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Evaluate an artefact; print the result and write it to a folder.

    Args:
        cfg: The configuration of `eval.py`, with `artefact`.
        overrides: What of it was asked for. Data and preparation are those of the manifest unless
            other data was asked for.

    Returns:
        What `report.json` holds.

    Raises:
        ZooError: The manifest does not fit or the runtime cannot load the file, the data is for
            something else, or a setting is for models; nothing was written.
    """
    from zoo.config import EvalRun

    asked = command_line.asked(cfg, overrides, EvalRun)
    _refuse_models(cfg, asked)
    file, manifest = files.read(cfg.artefact)
    settings = _settings(cfg, asked, file, manifest)
    loaded = Loaded(file, manifest, cfg.runtime)
    data = _open(settings, cfg.batch_size, file, manifest)
    answers = Answers(loaded, manifest, data)
    _check(answers, file, data)
    runtime = loaded.runtime
    out = Path(cfg.out).expanduser() if cfg.out is not None else _beside(file, data, runtime.name)
    model = manifest.get("model", {})
    name, precision = model.get("name") or file.name, manifest.get("precision", "float32")
    subject = Subject(
        forward=answers,
        data=data,
        device=torch.device("cpu"),
        about={
            "model": model.get("name"),
            "artefact": str(file),
            "sha256": manifest["artefact"]["sha256"],
            "format": manifest.get("format"),
            "precision": precision,
            "runtime": runtime.name,
            "runtime_version": runtime.version,
            "fused": model.get("fused"),
        },
        title=f"{name}, {manifest.get('format')} {precision} in {runtime.name}",
        class_names=manifest.get("class_names"),
        unknown=("loss",) if answers.answer == "argmax" else (),
    )
    return judge(subject, out)


def _refuse_models(cfg: DictConfig, asked: dict[str, Any]) -> None:
    """Raise `BadInput` for settings that have no effect on an artefact."""
    models = [key for key in asked if key.startswith("model.")]
    given = [f"weights={cfg.weights}"] if cfg.weights is not None else []
    given += [f"{key}={asked[key]}" for key in models]
    given += ["fused=true"] if cfg.fused else []
    given += [f"device={cfg.device}"] if cfg.device != "auto" else []
    if given:
        raise BadInput(
            f"{given[0]} has no effect on an artefact, which is evaluated as it is; leave it or"
            " artefact out"
        )


def _settings(cfg: DictConfig, asked: dict[str, Any], file: Path, manifest: Manifest) -> DictConfig:
    """Return the group `data`: what was asked for, else what the manifest says."""
    known, named = manifest.get("data"), asked.get("data.name")
    if known is None and named is None:
        raise BadInput(f"{file.parent / files.NAME} names no data set; give data=<name>")
    same = known is not None and named in (None, known["name"])
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), known if same else cfg.data)
    assert isinstance(merged, DictConfig)
    for key, value in asked.items():
        if key.startswith("data."):
            OmegaConf.update(merged, key.removeprefix("data."), value, merge=False)
    _fit_input(merged, asked, file, manifest["input"])
    return merged


def _fit_input(
    settings: DictConfig, asked: dict[str, Any], file: Path, takes: dict[str, Any]
) -> None:
    """Set size and channels of the images to those of the artefact, unless others can be."""
    if len(takes["size"]) != 3:
        raise BadInput(f"{file.name} takes volumes, {takes['size']}; there is no data set of them")
    channels, *own = takes["size"]
    if asked.get("data.in_chans", channels) != channels:
        raise BadInput(
            f"data.in_chans={asked['data.in_chans']}: {file.name} takes images of {channels}; leave"
            " it out"
        )
    settings.in_chans = channels
    if settings.image_size is None:
        settings.image_size = own
    size = list(size_of(OmegaConf.to_container(settings)["image_size"]))  # type: ignore[index,call-overload]
    fixed = [isinstance(side, int) for side in takes["shape"][2:]]
    if any(is_fixed and a != b for is_fixed, a, b in zip(fixed, size, own, strict=True)):
        raise BadInput(
            f"data.image_size={size}: {file.name} takes images of {own[0]}x{own[1]}; leave it out"
        )
    multiple = takes.get("multiple") or 1
    if any(side % multiple for side in size):
        raise BadInput(f"data.image_size={size}: {file.name} takes multiples of {multiple}")
    for key in ("mean", "std"):
        if takes.get("dtype") == "uint8" and f"data.{key}" in asked:
            raise BadInput(
                f"data.{key} has no effect on {file.name}, which normalises itself; leave it out"
            )


def _open(settings: DictConfig, batch_size: int, file: Path, manifest: Manifest) -> Any:
    """Open the validation images, prepared as the manifest says."""
    takes = manifest["input"]
    prepared = {key: takes.get(key) for key in PREPARED} | (takes.get("normalised_inside") or {})
    for key in ("mean", "std"):
        if prepared[key] is None and settings[key] is None:
            raise BadInput(f"{file.parent / files.NAME} states no {key}; give data.{key}")
    data = create_datamodule(settings, batch_size=batch_size, **prepared)
    task = manifest.get("task", "classification")
    if task != data.task:
        raise BadInput(f"{file.name} is for {task}, data.name={settings.name} for {data.task}")
    data.setup("validate")
    known = manifest.get("model", {}).get("num_classes")
    if known not in (None, data.num_classes):
        raise BadInput(
            f"{file.name} knows {known} classes, the data {settings.name} has {data.num_classes};"
            " name the data that the model was trained on"
        )
    return data


def _check(answers: Answers, file: Path, data: Any) -> None:
    """Raise `BadInput` unless the artefact makes what the data asks for of one image."""
    size = "x".join(map(str, data.image_size))
    try:
        with torch.inference_mode():
            found = answers(torch.zeros(1, *data.shape))
    except BadInput:
        raise
    except Exception as error:  # a runtime may object in any way
        raise BadInput(
            f"{file.name} does not run on an image of {size}: {first_line(error)}"
        ) from error
    if found.shape != (1, *data.output_shape):
        made, wanted = ("x".join(map(str, shape)) for shape in (found.shape[1:], data.output_shape))
        raise BadInput(
            f"{file.name} returns {made} numbers an image of {size}, the data ask for {wanted}"
        )


def _beside(file: Path, data: Any, runtime: str) -> Path:
    """Return the folder for the report beside the artefact; nothing is made yet."""
    folder = file.parent / f"eval_{data.config.name}_{runtime}".replace("/", "-")
    run_folder.check_writable(folder, "out")
    return folder
