"""An artefact with its manifest, loaded into a runtime. Takes any number of images."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo import runtimes
from zoo.errors import BadInput


class LoadedArtefact:
    """An artefact that takes any number of images, even if its own batch is static.

    Args:
        file: The artefact.
        manifest: Its manifest; `zoo.deploy.files.read` returns both.
        runtime: Name of the runtime; None: the one that it was compared in.
        threads: Number of threads per call; None: all cores.

    Attributes:
        runtime: The runtime.

    Raises:
        BadInput: The runtime cannot load the file, or none on this platform can.
        MissingExtra: A package of the runtime is not installed.
    """

    def __init__(
        self,
        file: Path,
        manifest: dict[str, Any],
        runtime: str | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        runtime = runtime or manifest["comparison"].get("runtime")
        if runtime is None:
            raise BadInput(
                f"{file.name}: no runtime on this platform loads format "
                f"{manifest.get('format')!r}; export to another format"
            )
        self.runtime = runtimes.load(file, runtime, threads=threads)
        self._batch = manifest["input"]["shape"][0]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output, B ..., for B images.

        An artefact with a static batch is called several times; the last batch is filled up by
        repeating its last image.

        Args:
            images: B C H W, uint8 or normalised float32, as the manifest says.
        """
        step = self._batch if isinstance(self._batch, int) else len(images)
        parts = []
        for begin in range(0, len(images), step):
            part = images[begin : begin + step]
            missing = step - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            parts.append(self.runtime(full)[0][: len(part)])
        return np.concatenate(parts)
