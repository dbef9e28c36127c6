"""Call an exported file like the model that it was exported from."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data.datamodule import ImageData
from zoo.deploy.detections import to_output
from zoo.errors import BadInput, first_line
from zoo.runtimes.artefacts import LoadedArtefact
from zoo.training.tasks import denormalized


class ArtefactModel:
    """Takes normalised images and returns logits, also for artefacts with built-in processing.

    Args:
        artefact: The artefact, loaded in its runtime.
        manifest: The manifest of the artefact.
        data: The data module that provides the images and their normalisation.

    Attributes:
        postprocessing: `"softmax"`, `"sigmoid"`, `"argmax"` or `"nms"` if the artefact applies it.
    """

    def __init__(self, artefact: LoadedArtefact, manifest: dict[str, Any], data: ImageData) -> None:
        self.artefact, self.data = artefact, data
        self.takes_bytes = manifest["input"].get("dtype") == "uint8"
        self.postprocessing = manifest.get("postprocessing")

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, or values with the same order and cross-entropy, for images N C H W."""
        outputs = torch.from_numpy(self.artefact(self.prepared(images)))
        if self.postprocessing == "softmax":  # logarithms keep the order and the cross-entropy
            return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
        if self.postprocessing == "sigmoid":
            return outputs.double().logit(eps=1e-12)
        if self.postprocessing == "argmax":
            return self._one_hot(outputs.long())
        if self.postprocessing == "nms":
            return self._one_anchor_each(outputs)
        return outputs

    def prepared(self, images: Tensor) -> np.ndarray:
        """Return normalised images N C H W as the input of the artefact."""
        if self.takes_bytes:  # restore the bytes that the images were made from
            images = (255 * denormalized(self.data, images)).round().clamp(0, 255).byte()
            if self.data.config.channel_order == "BGR":
                images = images.flip(1)
        return images.contiguous().numpy()

    def check_output(self, name: str) -> None:
        """Raise `BadInput` unless the artefact returns the output shape that the data needs.

        Args:
            name: The file name, for messages.
        """
        size = "x".join(map(str, self.data.image_size))
        try:
            with torch.inference_mode():
                outputs = self(torch.zeros(1, *self.data.shape))
        except BadInput:
            raise
        except Exception as error:  # each runtime raises errors of its own
            raise BadInput(
                f"{name} does not run on an image of {size}: {first_line(error)}"
            ) from error
        if not self.data.accepts(outputs.shape[1:]):
            shapes = (outputs.shape[1:], self.data.output_shape)
            returned, needed = ("x".join(map(str, shape)) for shape in shapes)
            raise BadInput(
                f"{name} returns {returned} numbers for an image of {size}, but the data needs"
                f" {needed}; choose an artefact that was made for this data"
            )

    def _check_class(self, largest: int) -> None:
        if largest >= self.data.num_classes:
            raise BadInput(
                f"the artefact returned class {largest}, but the data has only"
                f" {self.data.num_classes} classes; choose the data that it was trained on"
            )

    def _one_anchor_each(self, rows: Tensor) -> Tensor:
        """Return detections B D 6 as boxes and scores of anchors, B D 4+K."""
        self._check_class(int(rows[..., 5].max()))
        count = self.data.num_classes
        return torch.stack([torch.from_numpy(to_output(one.numpy(), count)) for one in rows])

    def _one_hot(self, classes: Tensor) -> Tensor:
        self._check_class(int(classes.max()))
        count = self.data.num_classes
        if self.data.is_binary:  # the sign of a single logit
            return (2 * classes - 1).unsqueeze(1).float()
        return F.one_hot(classes, count).movedim(-1, 1).float()
