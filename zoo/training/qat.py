"""Quantisation-aware training: a run that starts from the weights of another.

It brings that run's model and data, trains what `zoo.exporters.prepared` makes of the model, and is
in all else a run like any other.
"""

import itertools
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from zoo.data.datamodule import ImageData
from zoo.errors import BadInput, BadWeights, NotExportable
from zoo.exporters import prepared
from zoo.exporters.prepared import KEY, Prepared
from zoo.exporters.prepared import facts as facts
from zoo.reparam import reparameterize
from zoo.runtimes import first_line, need
from zoo.training import overrides as command_line
from zoo.training.checkpoint import is_own
from zoo.weights import read_checkpoint

CALIBRATION = 4  # batches to find the first ranges on
FOLLOWING = 0.5  # share of the updates in which ranges follow; then weights settle on fixed steps


def started(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration with the model and the data of the checkpoint to start from.

    Args:
        cfg: What was composed.
        overrides: What of it was asked for, which stands against the checkpoint.

    Raises:
        BadInput: There are no weights to start from, or a key is asked for that has no effect.
        BadWeights: They are of another model, or trained for int8 already.
        MissingExtra: A package is not installed.
    """
    from zoo.config import ModelConfig, TrainRun
    from zoo.data import DataConfig

    source = cfg.model.checkpoint_path
    if source is None and not cfg.model.pretrained:
        raise BadInput(
            "train.qat=true starts from trained weights; give model.checkpoint_path=<run folder or"
            " file>, or model.pretrained=true"
        )
    need("train.qat", prepared.PACKAGES)
    asked = command_line.asked(cfg, overrides, TrainRun)
    for key in ("model.drop_rate", "model.drop_path_rate"):
        if asked.get(key):
            raise BadInput(f"{key}={asked[key]:g} has no effect with train.qat=true; leave it out")
    content = {} if source is None else read_checkpoint(source)
    if not is_own(content):
        return cfg
    if KEY in content:
        raise BadWeights(
            f"{source} is trained for int8 already; go on with train.resume={source}, or start from"
            " the float run"
        )
    saved, merged = content["config"], OmegaConf.merge(cfg)
    assert isinstance(merged, DictConfig)
    name = asked.get("model.name", saved["model"]["name"])
    if name != saved["model"]["name"]:
        raise BadWeights(
            f"model.checkpoint_path={source} is of {saved['model']['name']}, not of {name}; leave"
            " model out"
        )
    merged.model = OmegaConf.merge(OmegaConf.structured(ModelConfig), saved["model"])
    merged.model.pretrained = False
    if asked.get("data.name", saved["data"]["name"]) == saved["data"]["name"]:
        merged.data = OmegaConf.merge(OmegaConf.structured(DataConfig), saved["data"])
    for key, value in asked.items():
        if key.startswith(("model.", "data.")):
            OmegaConf.update(merged, key, value, merge=False)
    merged.model.checkpoint_path = source
    return merged


def check_processes(count: int) -> None:
    """Raise `BadInput` for several processes: each would find ranges of its own."""
    if count > 1:
        raise BadInput(f"train.qat=true runs in one process, not in {count}; give train.devices=1")


def fused(model: nn.Module) -> nn.Module:
    """Return what is to be prepared: the form that is deployed."""
    return reparameterize(model.eval())


def prepare(
    model: nn.Module, data: ImageData, calibrate: bool, layout: torch.memory_format
) -> Prepared:
    """Return the graph to train.

    Args:
        model: Fused, on its device.
        data: Says the size of images.
        calibrate: Find the first ranges; a checkpoint has its own.
        layout: Of the images.

    Raises:
        NotExportable: The model cannot be traced, or its graph cannot be trained.
    """
    net = prepared.prepare(model, (data.in_chans, *data.image_size))
    net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    if calibrate:
        device = next(net.parameters()).device
        loader = data.train_dataloader()
        loader.load_state_dict({"epoch": 0, "batch": 0})
        batches = itertools.islice(loader, CALIBRATION)
        net.calibrate(images.to(device, memory_format=layout) for images, _ in batches)
        _check_gradients(net, torch.zeros(2, *net.meta["input_size"], device=device), layout)
    return net


def _check_gradients(net: Prepared, images: Tensor, layout: torch.memory_format) -> None:
    """Raise `NotExportable` unless a step of training is possible: not every operator is."""
    try:
        net.eval()(images.to(memory_format=layout)).sum().backward()
    except Exception as error:  # whatever an operator raises on what it is not made for
        last = layout == torch.channels_last
        advice = "; train.channels_last=false may help" if last else ""
        raise NotExportable(
            f"{type(net).__name__} cannot be trained with train.qat: {first_line(error)}{advice}"
        ) from error
    finally:
        net.zero_grad()
        net.train()


def ranges_follow(updates: int) -> int:
    """Return after which of all `updates` ranges stay as they are."""
    return max(1, round(FOLLOWING * updates))
