"""Downloads of a run with several processes."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.fabric import Fabric

from zoo.data.datamodule import ImageData
from zoo.errors import BadInput


def download_once(data: ImageData, fabric: Fabric) -> None:
    """Download with the first process of each machine while the other processes wait.

    Raises:
        BadInput: A download failed; every process raises the same error.
    """
    # The default group would time out during a long download.
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    failure = None
    if fabric.local_rank == 0:
        try:
            data.download()
        except BadInput as error:
            failure = str(error)
    failures: list[str | None] = [None] * fabric.world_size
    dist.all_gather_object(failures, failure, group=group)
    dist.destroy_process_group(group)
    for failure in filter(None, failures):
        raise BadInput(failure)
