"""A gallery of pictures to search for those that resemble another picture."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.deploy.predict import Predictor
from zoo.errors import BadInput

LEAST_LENGTH = 1e-12  # of an embedding


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings ... D with length 1, which files of low precision do not ensure."""
    vectors = embeddings.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(LEAST_LENGTH)


class Gallery:
    """Pictures and their embeddings.

    Pictures that cannot be read, or have no finite embedding, are left out with a warning.

    Args:
        predictor: A loaded artefact or model for retrieval.
        paths: Image files.
        batch_size: Pictures per call.

    Raises:
        BadInput: No picture is left.
    """

    def __init__(self, predictor: Predictor, paths: Sequence[Path], batch_size: int = 8) -> None:
        self.paths: list[Path] = []
        found: list[np.ndarray] = []
        for begin in range(0, len(paths), batch_size):
            prepared = []
            for path in paths[begin : begin + batch_size]:
                try:
                    prepared.append(predictor.prepare(path))
                except BadInput as error:
                    _warn(f"{error}; it is left out of the gallery")
            for item, embedding in zip(
                prepared, predictor(prepared) if prepared else (), strict=True
            ):
                if not np.isfinite(embedding).all():
                    _warn(
                        f"{item.path}: its embedding is not finite; it is left out of the gallery"
                    )
                    continue
                self.paths.append(item.path)
                found.append(embedding)
        if not found:
            raise BadInput(
                f"the gallery has no picture that can be used, of {len(paths)}; give --gallery a"
                " folder of pictures"
            )
        self.embeddings = unit(np.stack(found))

    def nearest(self, embedding: np.ndarray, path: Path, top: int) -> list[dict[str, Any]]:
        """Return the `top` most similar pictures, most similar first, without the picture itself.

        Args:
            embedding: Of the picture, D.
            path: The file of the picture.
            top: How many to return.

        Returns:
            The `file` of each, and its `similarity`: the cosine of the angle between embeddings.
        """
        similarity = self.embeddings @ unit(embedding)
        order = np.argsort(-similarity, kind="stable")
        own = os.path.realpath(path)
        others = [i for i in order if os.path.realpath(self.paths[i]) != own]
        return [
            {"file": str(self.paths[i]), "similarity": float(similarity[i])} for i in others[:top]
        ]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
