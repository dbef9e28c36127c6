"""An artefact with its manifest, loaded into a runtime. Takes any number of images."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo import runtimes
from zoo.errors import BadInput, first_line


class AnyBatch:
    """A runtime that takes any number of images, even if its own batch is static.

    Args:
        runtime: The runtime.
        batch: The static batch size; None if any number may be passed.
        name: Name of the file or the model, for messages.

    Attributes:
        runtime: The runtime.
    """

    def __init__(self, runtime: runtimes.Runtime, batch: int | None, name: str) -> None:
        self.runtime, self._batch, self._name = runtime, batch, name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output, B ..., for B images.

        With a static batch the runtime is called several times; the last batch is filled up by
        repeating its last image.

        Args:
            images: B C H W, uint8 or normalised float32, as the manifest says.

        Raises:
            BadInput: The runtime does not run on these images.
        """
        step = self._batch or len(images)
        parts = []
        for begin in range(0, len(images), step):
            part = images[begin : begin + step]
            missing = step - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            try:
                outputs = self.runtime(full)
            except Exception as error:  # each runtime raises errors of its own
                raise BadInput(
                    f"{self._name} does not run on inputs of {'x'.join(map(str, full.shape))} in "
                    f"{self.runtime.name}: {first_line(error)}"
                ) from error
            parts.append(outputs[0][: len(part)])
        return np.concatenate(parts)


class LoadedArtefact(AnyBatch):
    """An artefact that takes any number of images, even if its own batch is static.

    Args:
        file: The artefact.
        manifest: Its manifest; `zoo.deploy.files.read` returns both.
        runtime: Name of the runtime; None: the one that it was compared in.
        threads: Number of threads per call; None: all cores.

    Raises:
        BadInput: The runtime cannot load the file, none on this platform can, or the input of the
            file is not the one in the manifest.
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
        runtime = runtime or manifest["comparison"]["runtime"]
        if runtime is None:
            raise BadInput(
                f"{file.name}: no runtime on this platform loads format {manifest['format']!r}; "
                "export to another format"
            )
        loaded = runtimes.load(file, runtime, threads=threads)
        shape = manifest["input"]["shape"]
        actual = getattr(loaded, "shape", None)
        stated = tuple(n if isinstance(n, int) else None for n in shape)
        if actual is not None and actual != stated:
            raise BadInput(
                f"{file.parent / 'manifest.json'} says input.shape: {shape}, but {file.name} takes "
                f"{[n or 'any' for n in actual]}; export again"
            )
        super().__init__(loaded, shape[0] if isinstance(shape[0], int) else None, file.name)
