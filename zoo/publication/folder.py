"""Write the folder of a repository: weights, configuration, licence, model card and pictures."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from zoo import registry
from zoo.deploy.manifest import Origin, task_of
from zoo.errors import BadInput, shown
from zoo.hub import CONFIG, WEIGHTS
from zoo.publication import run_records
from zoo.publication.card import Card
from zoo.publication.timm_form import architecture_and_state

CARD, LICENCE, PICTURES = "README.md", "LICENSE", "pictures"
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
# Arguments that change nothing in a model in evaluation mode.
_WITHOUT_EFFECT = ("drop_rate", "drop_path_rate")


def write(
    folder: Path,
    repository: str,
    model: nn.Module,
    origin: Origin,
    content: Mapping[str, Any],
    run: Path,
    *,
    licence: str | None = None,
    with_pictures: bool = True,
) -> Card:
    """Write the files of a repository into a folder.

    Args:
        folder: A folder that does not exist or is empty.
        repository: `owner/name`.
        model: The model in evaluation mode, with its weights.
        origin: Its name, arguments, class names, preprocessing and file of weights.
        content: The checkpoint.
        run: The run folder.
        licence: An identifier such as `"apache-2.0"`, or the path of a licence.
        with_pictures: Whether to add the pictures of the run.

    Raises:
        BadInput: The folder has other files or cannot be written, or the licence is neither an
            identifier nor a file.
    """
    identifier, licence_file = _licence(licence)
    files = run_records.pictures(run) if with_pictures else []
    paths = {f"{PICTURES}/{file.parent.name}_{file.name}": file for file in files}
    for path, file in paths.copy().items():
        if file.parent == run:
            paths[f"{PICTURES}/{file.name}"] = paths.pop(path)
    preprocessing = dict(origin.preprocessing)
    args = {
        key: value
        for key, value in origin.args.items()
        if value is not None and key not in _WITHOUT_EFFECT
    }
    size = tuple(preprocessing["size"])
    architecture, state, layers = architecture_and_state(model, str(origin.name), args, size)
    card = Card(
        repository=repository,
        model=str(origin.name),
        architecture=architecture,
        task=task_of(model, origin),
        params=sum(parameter.numel() for parameter in model.parameters()),
        preprocessing=preprocessing,
        class_names=origin.class_names,
        data=_data_name(origin),
        splits=content["data"].get("splits", {}),
        evaluation=run_records.evaluation(run, content, Path(str(origin.weights))),
        recipe=run_records.recipe(content),
        started_from=_started_from(content),
        latencies=run_records.latencies(run, str(origin.name), list(size)),
        pictures=list(paths),
        licence=identifier,
        has_licence_file=licence_file is not None,
        versions=content.get("versions", {}),
    )
    config = _config(card, args, layers)
    with _staged(folder) as staged:
        tensors = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
        safetensors.torch.save_file(tensors, staged / WEIGHTS[0], metadata={"format": "pt"})
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (staged / CONFIG).write_text(text + "\n", "utf-8")
        (staged / CARD).write_text(card.text(), "utf-8")
        if licence_file is not None:
            shutil.copyfile(licence_file, staged / LICENCE)
        for path, file in paths.items():
            (staged / PICTURES).mkdir(exist_ok=True)
            shutil.copyfile(file, staged / path)
    return card


def _licence(given: str | None) -> tuple[str | None, Path | None]:
    """Return the identifier of a licence, or its file."""
    if given is None:
        return None, None
    file = Path(given).expanduser()
    if file.is_file():
        return None, file
    if not _IDENTIFIER.fullmatch(given.lower()):
        raise BadInput(
            f"licence={shown(given)} is neither a file nor an identifier such as apache-2.0, mit,"
            " cc-by-4.0 or other"
        )
    return given.lower(), None


def _data_name(origin: Origin) -> str:
    """Return the name of the training data, without the path of a local folder."""
    name = str((origin.data or {}).get("name") or "")
    kind, _, rest = name.partition("/")
    return f"{kind}, a local folder" if rest.startswith((".", "/", "~", "\\")) else name


def _started_from(content: Mapping[str, Any]) -> str:
    """Return the weights that training started from, without paths."""
    config = content.get("config", {}).get("model", {})
    if config.get("checkpoint_path"):
        source = str(config["checkpoint_path"])
        address = re.match(r"(https://|hf:|hf-hub:)", source)
        return source.partition("?")[0] if address else "weights of another run or file"
    if not config.get("pretrained"):
        return ""
    name = config.get("encoder") or config.get("name")
    if registry.is_timm(name):
        return f"timm's published weights of {name.removeprefix(registry.TIMM)}"
    entry = next((entry for entry in registry.get_spec(name).weights if "url" in entry), {})
    licence = entry.get("licence", "not stated")
    return f"the published weights of {name} ({entry.get('tag', 'first')}, licence {licence})"


def _config(card: Card, args: Mapping[str, Any], layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config.json`: timm's entries."""
    size = list(card.preprocessing["size"])
    model_args = {key: value for key, value in args.items() if key != "num_classes"}
    if model_args.get("in_chans") == 3:
        del model_args["in_chans"]
    classes = args.get("num_classes")
    config: dict[str, Any] = {"architecture": card.architecture, "num_classes": classes}
    if card.preprocessing.get("channel_order") == "BGR":
        config["channel_order"] = "BGR"  # not an entry of timm's
    if card.class_names:
        config["label_names"] = list(card.class_names)
    if model_args:
        config["model_args"] = model_args
    config["pretrained_cfg"] = {
        "tag": "zoo",
        "custom_load": False,
        "input_size": size,
        **{key: card.preprocessing[key] for key in ("interpolation", "crop_pct", "mean", "std")},
        "num_classes": classes,
        **layers,
        **({"license": card.licence} if card.licence else {}),
    }
    return config


class _staged:
    """A temporary folder beside `folder`, which takes its place if everything was written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        try:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise BadInput(f"{shown(self.folder)} is not an empty folder; choose another one")
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.temporary = Path(tempfile.mkdtemp(prefix=".zoo-", dir=self.folder.parent))
        except OSError as error:
            raise self._unwritable(error) from error
        return self.temporary

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.temporary.chmod(0o755)
                if self.folder.exists():
                    self.folder.rmdir()
                os.replace(self.temporary, self.folder)
        except OSError as failed:
            raise self._unwritable(failed) from failed
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(
            f"{shown(self.folder)} cannot be written: {error.strerror or error}; choose another"
            " folder"
        )
