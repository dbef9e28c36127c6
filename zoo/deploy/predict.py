"""Predict with an artefact, using only its runtime and its manifest.

Images are prepared by Pillow and NumPy as the manifest says. For ONNX and OpenVINO files neither
PyTorch nor a model of this package is imported.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from zoo.deploy import detections, files, views
from zoo.deploy.schema import FITTED
from zoo.errors import BadInput
from zoo.images import convert, open_image, reason, resize_and_crop
from zoo.runtimes.artefacts import LoadedArtefact

SUPPORTED = ("classification", "segmentation", "detection", "retrieval", "multi-label")
LABEL_THRESHOLD = 0.5  # probability from which a label is predicted


@dataclass(frozen=True)
class PreparedImage:
    """An image, ready for an artefact.

    Attributes:
        path: The file.
        original: The image as it was read, upright, RGB or grey; None for classification, which
            does not need it any more.
        size: Its width and height in pixels.
        pixels: C H W, uint8 or normalised float32.
        content_size: Height and width, in pixels, of the part in the upper left corner that shows
            the image, the rest being padding; None if the image was cropped instead.
    """

    path: Path
    original: Image.Image | None
    size: tuple[int, int]
    pixels: np.ndarray
    content_size: tuple[int, int] | None


class Classifier(Protocol):
    """What predicts: an artefact or a model, with the description that a manifest has.

    Attributes:
        name: Name of the file or the model, for messages.
        manifest: `task`, `input`, `class_names` and `postprocessing`, as in a manifest.
    """

    name: str
    manifest: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output, B ..., for any number of images B C H W."""
        ...


class ArtefactFile:
    """An artefact that was read from a file.

    Args:
        path: The artefact, its manifest, or the folder of both.
        threads: Number of threads per call; None: all cores.

    Raises:
        BadInput: The manifest does not follow its schema, or does not match the artefact.
        MissingExtra: A package of the runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        file, self.manifest = files.read(path)
        self.name = file.name
        self._run = LoadedArtefact(file, self.manifest, threads=threads)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output, B ..., for any number of images B C H W."""
        return self._run(images)


class Predictor:
    """Classifies, segments or embeds images, or finds objects in them.

    Args:
        source: What predicts, or the path of an artefact, as for `ArtefactFile`.
        threads: Number of threads per call of an artefact; None: all cores.
        tta: `"flip"` averages the probabilities with those of the mirrored images; only for
            classification and labels.

    Raises:
        BadInput: The source has another task, does not take grey or RGB images, or is an artefact
            that cannot be used.
        MissingExtra: A package of the runtime is not installed.
    """

    def __init__(
        self, source: Classifier | str | Path, threads: int | None = None, *, tta: str = "none"
    ) -> None:
        if not hasattr(source, "manifest"):
            source = ArtefactFile(cast(str, source), threads)
        source = cast(Classifier, source)
        self.source, self.manifest = source, source.manifest
        self.task = self.manifest["task"]
        if self.task not in SUPPORTED:
            raise BadInput(
                f"{source.name} is a {self.task} model; predict only supports "
                f"{', '.join(SUPPORTED[:-1])} and {SUPPORTED[-1]}"
            )
        views.check("--tta", tta, self.task)
        if tta == "flip":
            self.source = views.Mirrored(source)
        self.input = self.manifest["input"]
        if len(self.input["shape"]) != 4 or self.input["size"][0] not in (1, 3):
            raise BadInput(
                f"{source.name} takes inputs of shape {self.input['shape']}; predict only supports "
                "grey and RGB images"
            )
        pixels = self.input["dtype"] == "uint8"
        if not pixels and not (self.input["mean"] and self.input["std"]):
            raise BadInput(
                f"the manifest of {source.name} has no mean and std to normalise with; export "
                "again with origin.preprocessing"
            )

    def prepare(self, path: Path) -> PreparedImage:
        """Read an image, resize it and normalise it as the manifest says.

        Raises:
            BadInput: The file cannot be read as an image.
        """
        if not os.path.exists(path):
            raise BadInput(f"image or folder {str(path)!r} does not exist")
        channels, *size = self.input["size"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about damaged metadata or large images
                with open_image(path) as image:
                    original = convert(image, channels)
            resized, content_size = resize(original, (size[0], size[1]), self.input)
        except Exception as error:  # as in zoo.images.read_image; MemoryError, too
            raise BadInput(f"cannot read image {path} ({reason(error)})") from error
        pixels = np.asarray(resized).reshape(*size, channels).transpose(2, 0, 1)
        if self.input["channels"] == "BGR":
            pixels = pixels[::-1]
        if self.input["dtype"] != "uint8":
            # Mean and std are scaled to 0..255, not the pixels to 0..1: training does the same.
            mean, std = (255 * np.asarray(self.input[key], np.float64) for key in ("mean", "std"))
            pixels = pixels - mean.astype(np.float32).reshape(-1, 1, 1)
            pixels /= std.astype(np.float32).reshape(-1, 1, 1)
        kept = original if self.task in FITTED else None
        return PreparedImage(path, kept, original.size, np.ascontiguousarray(pixels), content_size)

    def __call__(self, batch: Sequence[PreparedImage]) -> np.ndarray:
        """Return the first output, B ..., for a batch of B images."""
        return self.source(np.stack([prepared.pixels for prepared in batch]))

    def class_name(self, index: int) -> str:
        """Return the name of a class; its number if the manifest has no names."""
        names = self.manifest["class_names"]
        if names and index >= len(names):
            raise BadInput(
                f"{self.source.name} returns class {index}, but its manifest has only {len(names)} "
                "class_names; export again"
            )
        return names[index] if names else str(index)

    def classify(self, output: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Return the `top` most likely classes of one image, most likely first.

        Args:
            output: The artefact's output for the image: K logits or probabilities.
            top: How many classes to return.
        """
        if self.manifest.get("task") == "multi-label":
            return self._labels(output, top)
        is_probability = self.manifest["postprocessing"] == "softmax"
        if "temperature" in self.manifest:  # the logits of calibrated probabilities
            if is_probability:
                output = np.log(np.maximum(output, np.finfo(np.float32).tiny))
            output = output.astype(np.float64) / self.manifest["temperature"]
            is_probability = False
        probabilities = output if is_probability else softmax(output.astype(np.float64))
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [
            {"class": int(i), "name": self.class_name(int(i)), "probability": float(p)}
            for i, p in zip(order, probabilities[order], strict=True)
        ]

    def _labels(self, output: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Return the `top` most likely labels, and whether each is predicted."""
        shares = output.astype(np.float64)
        if self.manifest["postprocessing"] != "sigmoid":
            shares = 1 / (1 + np.exp(-shares.clip(-700, 700)))
        order = np.argsort(-shares, kind="stable")[:top]
        return [
            {
                "class": int(i),
                "name": self.class_name(int(i)),
                "probability": float(shares[i]),
                "predicted": bool(shares[i] >= LABEL_THRESHOLD),
            }
            for i in order
        ]

    def segment(self, output: np.ndarray, prepared: PreparedImage) -> np.ndarray:
        """Return the class of each pixel, in the size of the original image.

        Args:
            output: The artefact's output for the image: K H W logits, or H W classes.
            prepared: The image.
        """
        classes = self._class_map(output)
        height, width = classes.shape
        if prepared.content_size is not None:  # remove the padding
            sides = zip(classes.shape, prepared.content_size, self.input["size"][1:], strict=True)
            height, width = (max(1, round(n * part / whole)) for n, part, whole in sides)
        mask = Image.fromarray(classes[:height, :width].astype(np.int32))
        return np.asarray(mask.resize(prepared.size, Image.Resampling.NEAREST))

    def detect(self, output: np.ndarray, prepared: PreparedImage) -> detections.Detections:
        """Return what was found, with boxes as shares of the original image.

        Args:
            output: The artefact's output for the image: A 4+K, or D 6 after suppression.
            prepared: The image.
        """
        is_done = self.manifest["postprocessing"] == "nms"
        found = detections.from_rows(output) if is_done else detections.detect(output)
        if prepared.content_size is None:
            return found
        height, width = (
            whole / part
            for whole, part in zip(self.input["size"][1:], prepared.content_size, strict=True)
        )
        boxes = (found.boxes * np.array([width, height, width, height])).clip(0, 1)
        return detections.Detections(boxes, found.scores, found.classes)

    def _class_map(self, output: np.ndarray) -> np.ndarray:
        """Return the class of each pixel, H W."""
        if self.manifest["postprocessing"] == "argmax":
            return output.astype(np.int64)
        if len(output) == 1:  # binary segmentation has a single logit
            return (output[0] > 0).astype(np.int64)
        return output.argmax(axis=0)


def resize(
    image: Image.Image, size: tuple[int, int], config: dict[str, Any]
) -> tuple[Image.Image, tuple[int, int] | None]:
    """Resize an image as a manifest says: crop it, or fit it into a padded image.

    Args:
        image: RGB or grey.
        size: Height and width in pixels.
        config: Entry `input` of the manifest.

    Returns:
        The resized image, and the height and width of its content if it was padded.
    """
    interpolation = Image.Resampling[str(config["interpolation"] or "bicubic").upper()]
    if config.get("resize") == "fit":
        colour = config["mean"] or _padding_mean(config)
        colour = colour[::-1] if config.get("channels") == "BGR" else colour
        return _pad(image, size, interpolation, colour)
    return resize_and_crop(image, size, config["crop_pct"] or 1.0, interpolation), None


def _padding_mean(config: dict[str, Any]) -> list[float]:
    """Return the colour to pad with, 0..1 per channel, if the artefact normalises by itself."""
    inside = (config.get("normalised_inside") or {}).get("mean")
    return inside or [0.5] * config["size"][0]


def _pad(
    image: Image.Image,
    size: tuple[int, int],
    interpolation: Image.Resampling,
    mean: Sequence[float],
) -> tuple[Image.Image, tuple[int, int]]:
    """Resize the whole image to fit into `size`, and pad it at the right and the bottom.

    Returns:
        The padded image, and the height and width of its content.
    """
    width, height = image.size
    scale = min(size[0] / height, size[1] / width)
    content = (
        min(size[0], max(1, round(scale * height))),
        min(size[1], max(1, round(scale * width))),
    )
    colour: Any = tuple(round(255 * value) for value in mean)
    padded = Image.new(image.mode, (size[1], size[0]), colour if len(mean) > 1 else colour[0])
    padded.paste(image.resize((content[1], content[0]), interpolation), (0, 0))
    return padded, content


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
