"""Load a model or an exported file into any runtime."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zoo import runtimes
from zoo.deploy import files
from zoo.deploy.pipeline import convert
from zoo.errors import BadInput
from zoo.reparam import reparameterize
from zoo.runtimes.pytorch import in_eval_mode


def load(
    source: nn.Module | str | os.PathLike[str],
    runtime: str = "eager",
    *,
    input_size: Sequence[int] = (1, 3, 224, 224),
    fused: bool = False,
    **settings: Any,
) -> runtimes.Runtime:
    """Load a model or an artefact into a runtime, exporting a model if the runtime needs a file.

    Args:
        source: A model, which does not change, or the path of an artefact.
        runtime: One of `zoo.runtimes.NAMES`.
        input_size: B C H W to export a model for.
        fused: Whether to re-parameterise a copy of the model first.
        **settings: `threads`, `dtype` and `channels_last` for `zoo.runtimes.load`.

    Raises:
        BadInput: The runtime does not support a setting, or `fused` is set for an artefact.
        MissingExtra: A package of the runtime is not installed.
        NotExportable: The model cannot be exported to the format that the runtime needs.
    """
    runtimes.check_settings(runtime, **settings)
    if not isinstance(source, nn.Module):
        if fused:
            raise BadInput(
                f"fused=True: {str(source)!r} is an exported file, which cannot be fused; export "
                "the fused model instead"
            )
        stated = files.stated_fused(Path(source))
        return runtimes.load(source, runtime, fused=stated, **settings)
    if fused:
        source = reparameterize(in_eval_mode(source))
    suffix = runtimes.artefact_suffix(runtime)
    if suffix is None:
        return runtimes.load(source, runtime, **settings)
    is_fused = bool(getattr(source, "reparameterized", False))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{suffix}"
        model = in_eval_mode(source)
        convert(model, file, input_size=tuple(input_size), dynamic_batch=False)
        return runtimes.load(file, runtime, fused=is_fused, **settings)
