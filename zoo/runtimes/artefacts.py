"""An artefact with its manifest, loaded: it takes any number of images, whatever its own batch."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo import runtimes
from zoo.errors import BadInput


class LoadedArtefact:
    """A finished export in a runtime.

    Args:
        file: The artefact.
        manifest: What is said of it; `zoo.deploy.files.read` returns both.
        runtime: What runs it; None: what it was compared in.
        threads: That share one call; None: all there are.

    Attributes:
        runtime: What runs it.

    Raises:
        BadInput: The runtime cannot load the file, or nothing here can.
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
            raise BadInput(f"{file.name}: nothing here runs format {manifest.get('format')!r}")
        self.runtime = runtimes.load(file, runtime, threads=threads)
        self._batch = manifest["input"]["shape"][0]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output, for as many images as were handed in.

        An artefact of a fixed batch is called as often as it takes, the last time filled up.

        Args:
            images: B C H W, bytes or normalised float32 as the manifest says.
        """
        step = self._batch if isinstance(self._batch, int) else len(images)
        parts = []
        for begin in range(0, len(images), step):
            part = images[begin : begin + step]
            missing = step - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            parts.append(self.runtime(full)[0][: len(part)])
        return np.concatenate(parts)
