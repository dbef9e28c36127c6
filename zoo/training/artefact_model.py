"""An exported file that is called like the model it was made from."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data.datamodule import ImageData
from zoo.errors import BadInput, first_line
from zoo.runtimes.artefacts import LoadedArtefact
from zoo.training.tasks import denormalized


class ArtefactModel:
    """Takes normalised images and returns logits, whatever the artefact takes and returns.

    Args:
        artefact: In its runtime.
        manifest: Of the artefact.
        data: Gives the images, and knows how it normalised them.

    Attributes:
        answer: What the artefact returns instead of logits: `"softmax"`, `"argmax"` or None.
    """

    def __init__(self, artefact: LoadedArtefact, manifest: dict[str, Any], data: ImageData) -> None:
        self.artefact, self.data = artefact, data
        self.takes_pixels = manifest["input"].get("dtype") == "uint8"
        self.answer = manifest.get("postprocessing")

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, or values that are scored alike, for images N C H W."""
        if self.takes_pixels:  # restore the bytes that the images were made from
            images = (255 * denormalized(self.data, images)).round().clamp(0, 255).byte()
        outputs = torch.from_numpy(self.artefact(images.contiguous().numpy()))
        if self.answer == "softmax":  # logarithms keep the order and the cross-entropy
            return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
        if self.answer == "argmax":
            return self._one_hot(outputs.long())
        return outputs

    def check(self, name: str) -> None:
        """Raise `BadInput` unless the artefact returns what the data needs for one image.

        Args:
            name: Of the file, for messages.
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
        if outputs.shape != (1, *self.data.output_shape):
            shapes = (outputs.shape[1:], self.data.output_shape)
            returned, needed = ("x".join(map(str, shape)) for shape in shapes)
            raise BadInput(
                f"{name} returns {returned} numbers for an image of {size}; the data needs {needed}"
            )

    def _one_hot(self, classes: Tensor) -> Tensor:
        count = self.data.num_classes
        largest = int(classes.max())
        if largest >= count:
            raise BadInput(
                f"the artefact answers class {largest}, the data has only {count} classes"
            )
        return F.one_hot(classes, count).movedim(-1, 1).float()
