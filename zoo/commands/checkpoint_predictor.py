"""Predict with the model of a run or a checkpoint, without exporting it."""

from typing import Any

import numpy as np

from zoo import runtimes
from zoo.commands import resolve
from zoo.commands.export import image_shape, load_model
from zoo.deploy import manifest
from zoo.deploy.spec import ExportSpec
from zoo.errors import BadInput
from zoo.quoting import command_line
from zoo.runtimes.artefacts import AnyBatch
from zoo.settings import ExportRun


class CheckpointModel:
    """The model of a run folder or a checkpoint of `train.py`, run by PyTorch.

    Args:
        path: The run folder or the checkpoint.
        threads: Number of threads per call; None: as many as PyTorch uses.

    Attributes:
        name: Name of the model.
        manifest: `task`, `input`, `class_names` and `postprocessing`, as in a manifest.

    Raises:
        BadInput: The file has weights, but does not name a model.
        BadWeights: The checkpoint cannot be read.
    """

    def __init__(self, path: str, threads: int | None = None) -> None:
        saved = resolve.read_weights(path)
        if not saved.is_run:
            export = command_line("export", {"weights": path}) + " model=<name>"
            raise BadInput(
                f"{path} does not say which model it belongs to; export it first: {export}"
            )
        _, model, origin = load_model(ExportRun(weights=path), {}, saved)
        size = (1, *image_shape(model, origin, None))
        # The graph of quantisation-aware training is traced for one batch size.
        spec = ExportSpec(size, dynamic_batch=not saved.is_qat)
        self.name = str(origin.name)
        self.manifest: dict[str, Any] = {
            "task": manifest.task_of(model, origin),
            "input": manifest.describe_input(model, origin, "input", spec, False, None),
            "class_names": None if origin.class_names is None else list(origin.class_names),
            "postprocessing": None,
        }
        runtime = runtimes.load(model, "eager", threads=threads)
        self._run = AnyBatch(runtime, 1 if saved.is_qat else None, self.name)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output, B ..., for any number of images B C H W."""
        return self._run(images)
