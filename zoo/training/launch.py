"""Start the processes of a run, after a check of what the machine has."""

import os
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from zoo.environment import describe_machine
from zoo.errors import BadInput, first_line
from zoo.settings import TrainConfig
from zoo.training.allocator import disable_malloc_trim
from zoo.training.checks import PRECISIONS

# Variables with which a cluster numbers the machines of a job.
_MACHINE_NUMBERS = {"NODE_RANK", "GROUP_RANK", "SLURM_NODEID"}


def launch(train: TrainConfig, *, alone: bool = False) -> Fabric:
    """Start the processes, and return the Fabric of this process.

    Args:
        train: The group `train` of the settings.
        alone: Whether this is the only process of the run, although a cluster started others.
    """
    devices, nodes = train.devices, train.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started the processes
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices not in ("auto", local):
            raise BadInput(
                f"train.devices={devices} differs from the {local} processes that torchrun started;"
                " leave it out"
            )
        started = int(os.environ["WORLD_SIZE"]) // local
        if nodes not in (1, started):
            raise BadInput(
                f"train.num_nodes={nodes} differs from the {started} machines of torchrun; leave it"
                " out"
            )
        devices, nodes = local, started
    elif devices == "auto" and train.accelerator == "cpu":
        devices = 1
    _check_machine(train, devices)
    try:
        fabric = Fabric(
            accelerator=train.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=train.strategy,
            precision=PRECISIONS[str(train.precision)],  # type: ignore[arg-type]
            plugins=[LightningEnvironment()] if alone else None,
        )
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise BadInput(
            f"train.accelerator={train.accelerator} with train.devices={train.devices} is not"
            f" available: {first_line(error)}"
        ) from error
    if fabric.device.type == "cpu":
        disable_malloc_trim()
    if train.sync_bn and (fabric.world_size == 1 or fabric.device.type != "cuda"):
        raise BadInput(
            "train.sync_bn=True has no effect without several processes on GPUs; leave it out"
        )
    return fabric


def _check_machine(train: TrainConfig, devices: Any) -> None:
    """Raise `BadInput` for what this machine does not have, before any process is started."""
    gpus = torch.cuda.device_count()
    is_auto = train.accelerator == "auto"
    wants_gpus = train.accelerator in ("cuda", "gpu") or (is_auto and gpus > 0)
    has_mps = is_auto and torch.backends.mps.is_available()
    if train.precision == "fp16" and not wants_gpus and not has_mps and train.accelerator != "mps":
        raise BadInput("train.precision=fp16 needs a GPU; on a CPU use train.precision=bf16 or 32")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if train.num_nodes > 1 and not _MACHINE_NUMBERS & os.environ.keys():
        raise BadInput(
            f"train.num_nodes={train.num_nodes} would wait for other machines: start train.py with"
            " torchrun on each of them (torchrun --nnodes=... train.py ...)"
        )
    if not isinstance(devices, int) or has_mps or train.accelerator == "mps":
        return
    available = gpus if wants_gpus else describe_machine()["usable_cores"]
    if devices > available and (available or not wants_gpus):
        raise BadInput(
            f"train.devices={devices} is more than the {available}"
            f" {'GPUs' if wants_gpus else 'cores'} of this machine; give at most {available}"
        )
