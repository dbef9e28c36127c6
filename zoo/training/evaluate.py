"""`evaluate(cfg)`: how good weights or an artefact are on a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.errors import BadInput, BadWeights
from zoo.training import overrides as command_line
from zoo.training import run_folder

Content = dict[str, Any]


def evaluate(cfg: DictConfig, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate a model or an artefact; print the result and write it to a folder.

    Args:
        cfg: The configuration of `eval.py`.
        overrides: What of it was asked for; by default what the command line says. A checkpoint of
            `train.py` brings its model and its data, an artefact too; what was asked for stands
            against that.

    Returns:
        What `report.json` holds.

    Raises:
        ZooError: Something in `cfg` cannot work, the weights do not fit, or they know another
            number of classes than the data has; nothing was written.
    """
    if cfg.batch_size < 1:
        raise BadInput(f"batch_size={cfg.batch_size} cannot work; it must be at least 1")
    if cfg.out is not None:
        run_folder.check_writable(cfg.out, "out")
    if overrides is None:
        overrides = command_line.from_command_line()
    if cfg.artefact is not None:
        from zoo.training import artefacts

        return artefacts.evaluate(cfg, overrides)
    _check_weights(cfg)
    return _evaluate(cfg, overrides)


def _check_weights(cfg: DictConfig) -> None:
    """Refuse what names no weights, or names them in two ways."""
    if cfg.runtime is not None:
        raise BadInput(f"runtime={cfg.runtime} is for artefacts; give artefact=<file>, too")
    if cfg.weights is None and not cfg.model.pretrained and cfg.model.checkpoint_path is None:
        raise BadInput(
            "weights is not given; name a run folder, a checkpoint, a file of published weights or"
            " its address, or set model.pretrained=true; artefact=<file> is for exports"
        )
    if cfg.model.encoder is not None and cfg.model.pretrained:
        raise BadInput(
            "model.pretrained loads nothing but the encoder; name weights of the whole model"
        )
    if cfg.weights is not None and (cfg.model.pretrained or cfg.model.checkpoint_path is not None):
        raise BadInput("weights excludes model.pretrained and model.checkpoint_path; give one")


def _evaluate(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    import torch

    from zoo.exporters import prepared
    from zoo.training.judging import Subject, judge

    content, path = _read(cfg.weights)
    own = _own(content)
    if own is not None:
        cfg = _inferred(cfg, own, overrides)
    out = _output_folder(cfg, path)
    data = _open_data(cfg, own)
    model = _build(cfg, own, content, data)
    rounds = own is not None and prepared.KEY in own
    device = _device(cfg.device)
    layout = torch.channels_last
    subject = Subject(
        forward=model.to(device, memory_format=layout),
        data=data,
        device=device,
        about={
            "model": cfg.model.name,
            "weights": str(path or cfg.model.checkpoint_path or "published"),
            "fused": cfg.fused or rounds,
            **({"qat": True} if rounds else {}),
        },
        title=cfg.model.name + (", fused" if cfg.fused else ", rounding to int8" if rounds else ""),
        class_names=own["data"]["class_names"] if own is not None else None,
        memory_format=layout,
    )
    return judge(subject, out)


def _read(weights: str | None) -> tuple[Content | None, Path | None]:
    """Return what the weights' file holds, and where it lies on disk."""
    from zoo.weights import local_file, read_checkpoint, run_checkpoint

    if weights is None:
        return None, None
    path = local_file(weights)
    path = run_checkpoint(path) if path.is_dir() else path
    return read_checkpoint(path), path


def _own(content: Content | None) -> Content | None:
    """Return `content` if it is a checkpoint of `train.py`."""
    from zoo.training.checkpoint import is_own

    return content if content is not None and is_own(content) else None


def _inferred(cfg: DictConfig, own: Content, overrides: Sequence[str]) -> DictConfig:
    """Return `cfg` with the model and the data that the checkpoint names, unless asked for."""
    from zoo.config import EvalRun, ModelConfig
    from zoo.data import DataConfig

    asked = command_line.asked(cfg, overrides, EvalRun)
    merged = OmegaConf.merge(cfg)
    assert isinstance(merged, DictConfig)
    saved = own["config"]
    if asked.get("model.name", saved["model"]["name"]) == saved["model"]["name"]:
        merged.model = OmegaConf.merge(OmegaConf.structured(ModelConfig), saved["model"])
        merged.model.pretrained, merged.model.checkpoint_path = False, None
    if asked.get("data.name", saved["data"]["name"]) == saved["data"]["name"]:
        merged.data = OmegaConf.merge(OmegaConf.structured(DataConfig), saved["data"])
    for key, value in asked.items():
        if key.startswith(("model.", "data.")):
            OmegaConf.update(merged, key, value, merge=False)
    return merged


def _output_folder(cfg: DictConfig, path: Path | None) -> Path:
    """Return where the report goes; nothing is made yet."""
    if cfg.out is not None:
        return Path(cfg.out).expanduser()
    from zoo.training.checkpoint import folder_of

    if path is None or str(cfg.weights).startswith(("http", "hf:")):
        base = Path("runs")
        name = f"eval_{cfg.model.name}_{cfg.data.name}"
    else:
        base, name = folder_of(path), f"eval_{cfg.data.name}"
    folder = base / (name.replace("/", "-") + ("_fused" if cfg.fused else ""))
    run_folder.check_writable(folder, "out")
    return folder


def _open_data(cfg: DictConfig, own: Content | None) -> Any:
    """Open the validation images, prepared as the weights expect."""
    from zoo.data import create_datamodule
    from zoo.training.parts import check_against_data, published_input

    expects = (
        own["data"]["preprocessing"]
        if own is not None
        else published_input(cfg.model.encoder or cfg.model.name)
    )
    expects = {key: expects[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    data = create_datamodule(cfg.data, batch_size=cfg.batch_size, **expects)
    data.setup("validate")
    if own is not None and own["data"]["num_classes"] != data.num_classes:
        raise BadInput(
            f"{cfg.weights} knows {own['data']['num_classes']} classes, the data {cfg.data.name}"
            f" has {data.num_classes}; name the data that the weights were trained on"
        )
    check_against_data(cfg.model, data)
    return data


def _build(cfg: DictConfig, own: Content | None, content: Content | None, data: Any) -> Any:
    """Build the model in eval mode, with its weights."""
    import zoo
    from zoo.exporters import prepared
    from zoo.training.parts import check_forward, model_arguments
    from zoo.weights import unwrap

    if own is not None and prepared.KEY in own:
        return _trained_for_int8(cfg, own, data)
    arguments = model_arguments(cfg.model, data.num_classes, data.in_chans)
    if own is not None and own["model"]["name"] == cfg.model.name:
        arguments = {**own["model"], "in_chans": data.in_chans}
    if cfg.model.pretrained:
        _check_published_classes(cfg.model.name, arguments, data)
    model = zoo.create_model(
        **arguments, pretrained=cfg.model.pretrained, checkpoint_path=cfg.model.checkpoint_path
    )
    if content is not None:
        try:
            zoo.load_weights(model, unwrap(content, str(cfg.weights)))
        except BadWeights as error:
            raise BadWeights(f"{cfg.weights}: {_explained(str(error), data)}") from error
    model.eval()
    check_forward(model, cfg.model.name, data)
    return zoo.reparameterize(model) if cfg.fused else model


def _trained_for_int8(cfg: DictConfig, own: Content, data: Any) -> Any:
    """Build what `train.qat=true` trained: it rounds as its artefact in int8 will."""
    from zoo.exporters import prepared

    if cfg.fused:
        raise BadInput(f"fused=true has no effect: {cfg.weights} was trained fused, with train.qat")
    if cfg.model.name != own["model"]["name"]:
        raise BadInput(f"{cfg.weights} is of {own['model']['name']}, not of {cfg.model.name}")
    size = [data.in_chans, *data.image_size]
    if size != own[prepared.KEY]["input_size"]:
        raise BadInput(
            f"data.image_size={size[1:]}: {cfg.weights} was trained with train.qat for"
            f" {own[prepared.KEY]['input_size'][1:]} alone; leave it out"
        )
    return prepared.rebuild(own, str(cfg.weights))


def _explained(message: str, data: Any) -> str:
    if "only the classifier" not in message:
        return message
    return f"knows another number of classes than the {data.num_classes} of the data ({message})"


def _check_published_classes(name: str, arguments: dict[str, Any], data: Any) -> None:
    """`pretrained` starts a fresh classifier for other classes: there is nothing to evaluate."""
    import zoo

    published = zoo.create_model(**{**arguments, "num_classes": None}).num_classes
    if published != data.num_classes:
        raise BadInput(
            f"the published weights of {name} know {published} classes, the data has"
            f" {data.num_classes}; evaluate on the data they were trained on"
        )


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"device={name} cannot be used: {first}") from error
    return device
