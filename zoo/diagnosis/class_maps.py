"""Class-activation maps: which parts of an image the head of a classifier saw a class in.

If the head averages the feature map and applies a linear layer, a logit is the mean over all
positions of the logit that the position would have if the whole feature map looked like it (Zhou et
al., Learning Deep Features for Discriminative Localization, arXiv 1512.04150). So the head itself
computes the map: it is called with feature maps that are constant. No gradients or weights are
needed, and the same is done with an ONNX file, which is cut in front of the pooling. Whether the
head is linear is measured: the mean of the map must be the logit.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo import runtimes
from zoo.runtimes.artefacts import AnyBatch

TOLERANCE = 0.02  # difference from the logits, as a share of their spread
_POOLS = ("GlobalAveragePool", "ReduceMean")


class Cut(Protocol):
    """A classifier in two parts."""

    def features(self, images: Tensor) -> Tensor:
        """Return the last feature maps, N C h w, of normalised images N C H W."""
        ...

    def head(self, features: Tensor) -> Tensor:
        """Return the logits N K of feature maps N C h w."""
        ...


class ModelCut:
    """A PyTorch model with `forward_features` and `forward_head`."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model, device

    def features(self, images: Tensor) -> Tensor:
        return self._model.forward_features(images.to(self._device))

    def head(self, features: Tensor) -> Tensor:
        return self._model.forward_head(features).float().cpu()


class OnnxCut:
    """An ONNX file, cut in front of its last pooling; both parts run in a runtime.

    Args:
        file: The file.
        runtime: Name of the runtime.
        batch: The static batch size; None if any number may be passed.
        prepare: Maps normalised images to the input of the file.

    Raises:
        ValueError: The file has no pooling.
    """

    def __init__(
        self, file: Path, runtime: str, batch: int | None, prepare: Callable[[Tensor], np.ndarray]
    ) -> None:
        import onnx

        model = onnx.shape_inference.infer_shapes(onnx.load(str(file)))
        nodes = model.graph.node
        pools = [node for node in nodes if node.op_type in _POOLS]
        if not pools:
            raise ValueError("no pooling")
        middle, last = pools[-1].input[0], model.graph.output[0].name
        final = next(node for node in nodes if last in node.output)
        if final.op_type == "Softmax":
            last = final.input[0]
        self._prepare = prepare
        first = model.graph.input[0].name
        self._features = _part(model, first, middle, runtime, batch)
        self._head = _part(model, middle, last, runtime, batch)

    def features(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._features(self._prepare(images)))

    def head(self, features: Tensor) -> Tensor:
        return torch.from_numpy(self._head(features.contiguous().numpy()))


def _part(model: Any, begin: str, end: str, runtime: str, batch: int | None) -> AnyBatch:
    """Return the part of an ONNX model between two tensors, loaded into a runtime."""
    import onnx

    part = onnx.utils.Extractor(model).extract_model([begin], [end])
    with tempfile.TemporaryDirectory(prefix="zoo") as folder:
        file = Path(folder) / "part.onnx"
        onnx.save(part, str(file))
        return AnyBatch(runtimes.load(file, runtime), batch, "the model")


def cut_model(model: Any, device: torch.device) -> Cut | None:
    """Return a PyTorch model in two parts, or None if it has no such parts."""
    has_parts = isinstance(model, nn.Module) and hasattr(model, "forward_features")
    return ModelCut(model, device) if has_parts and hasattr(model, "forward_head") else None


@torch.inference_mode()
def class_maps(cut: Cut, images: Tensor, classes: Tensor) -> np.ndarray | None:
    """Return the map of a class for each image, N h w, in logits; None if there are none.

    There are none if the head is not pooled and linear, or the last feature map is one position.

    Args:
        cut: The classifier.
        images: Normalised images, N C H W.
        classes: The number of the class to show for each image, N.
    """
    try:
        features = cut.features(images)
        if features.dim() != 4 or min(features.shape[2:]) < 2:
            return None
        logits = cut.head(features)
        height, width = features.shape[2:]
        maps = []
        for feature, logit, number in zip(features, logits, classes.tolist(), strict=True):
            columns = feature.flatten(1).T[:, :, None, None]  # h*w C 1 1
            seen = cut.head(columns.expand(-1, -1, height, width))  # h*w K
            difference = (seen.mean(dim=0) - logit).abs().max()
            if not difference <= TOLERANCE * float(logit.std()):
                return None
            maps.append(seen[:, number].reshape(height, width))
    except Exception:  # parts of any model or file: then there are no maps
        return None
    return torch.stack(maps).numpy()


def overlay(image: Tensor, values: np.ndarray) -> np.ndarray:
    """Return an image H W 3 in 0..1 whose parts with low values h w are dark and blue.

    Args:
        image: C H W, values in 0..1.
        values: h w; the lowest is drawn dark, the highest as it is.
    """
    low, high = float(values.min()), float(values.max())
    shares = torch.from_numpy((values - low) / (high - low) if high > low else values * 0 + 1)
    shares = nn.functional.interpolate(
        shares[None, None].float(), size=image.shape[1:], mode="bilinear", align_corners=False
    )[0]
    tint = torch.tensor([0.1, 0.1, 0.6])[:, None, None]
    mixed = image.expand(3, -1, -1) * (0.25 + 0.75 * shares) + tint * 0.6 * (1 - shares)
    return mixed.clamp(0, 1).permute(1, 2, 0).numpy()
