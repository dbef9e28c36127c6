"""Writes one model in int8 by several recipes, next to its float artefact, and describes them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.compression import int8_report, repairs
from zoo.compression.layers import Precisions
from zoo.compression.recipe import Quantizer, Recipe
from zoo.compression.signal_to_noise import SignalToNoise
from zoo.deploy.comparison import DYNAMIC_BATCHES, Comparison
from zoo.deploy.pipeline import Job
from zoo.deploy.tracing import WithPrePostProcessing
from zoo.errors import NotExportable, first_line
from zoo.progress import phase
from zoo.runtimes.artefacts import LoadedArtefact

WHY = "int8 is not equal to float; `quantization` states the loss, and on which images"


@dataclass(frozen=True)
class Writer:
    """Writes the int8 artefacts of one export.

    Attributes:
        job: The export.
        quantizer: Writes the format in int8.
        plain: Folder of the float artefact.
        comparison: Comparison of the float artefact with the model.
        batches: Images to calibrate on.
    """

    job: Job
    quantizer: Quantizer
    plain: Path
    comparison: Comparison
    batches: Sequence[np.ndarray]

    def convert(self, recipe: Recipe, folder: Path) -> tuple[Precisions, dict[str, int]]:
        """Write the artefact of a recipe to `folder`.

        Returns:
            The layers with and without int8 weights, and the number of pairs or layers that each
            repair changed.
        """
        wrapped = self.job.wrap(self.job.variant)
        inside = "model." if isinstance(wrapped, WithPrePostProcessing) else ""
        kept = tuple(inside + name for name in recipe.keep_float)
        recipe = dataclasses.replace(recipe, keep_float=kept)
        repaired, limits, changed = repairs.repair(wrapped, recipe, self.quantizer, self.batches)
        draft = folder / self.job.target.name
        found = self.quantizer.convert(repaired, draft, self.job.spec, self.batches, recipe, limits)
        names = [[name.removeprefix(inside) for name in part] for part in
                 (found.int8, found.floating)]  # fmt: skip
        return Precisions(*names), changed

    def load(self, folder: Path, content: dict[str, Any]) -> LoadedArtefact:
        """Load the artefact in `folder`, which a manifest describes."""
        return LoadedArtefact(folder / self.job.target.name, content, self.comparison.runtime)

    def describe(self, folder: Path, precision: str) -> dict[str, Any]:
        """Return the manifest of the artefact in `folder`, without its comparison."""
        return self.job.describe(
            folder,
            precision=precision,
            comparison=self.comparison,
            entry={},
            packages=self.quantizer.PACKAGES if precision == "int8" else (),
        )

    def write(self, recipe: Recipe, folder: Path, data: Any) -> dict[str, Any]:
        """Write the artefact of a recipe to `folder`, check and measure it.

        Returns:
            The manifest, with `quantization`.
        """
        precisions, changed = self.convert(recipe, folder)
        draft, plain = folder / self.job.target.name, self.plain / self.job.target.name
        wrapped = self.job.wrap(self.job.variant)
        with phase("checking integer sums"):
            sums = self.quantizer.check(wrapped, draft, self.batches)
        content = self.describe(folder, "int8")
        both = [self.load(place, content) for place in (self.plain, folder)]
        _check_outputs(self.job, both, self.batches, self.comparison)
        content["comparison"] = _comparison_entry(both, self.batches, self.comparison)
        about = {
            "artefact_sha256": content["artefact"]["sha256"],
            # A fixed batch may be filled up with repeated images.
            "calibrated_on": len({hash(x.tobytes()) for batch in self.batches for x in batch}),
            "weights": "int8, one scale per output channel",
            "ranges": recipe.ranges,
            "repairs": changed,
            "layers": len(precisions.int8) + len(precisions.floating),
            "int8_layers": len(precisions.int8),
            "keep_float": precisions.floating,
            "integer_sums": sums,
            **int8_report.sizes(plain, draft),
            **int8_report.latency(both, content["input"]),
        }
        if data is not None:
            about |= int8_report.evaluate_both(both, content, data)
        content["quantization"] = about
        return content


def _check_outputs(
    job: Job,
    both: Sequence[LoadedArtefact],
    batches: Sequence[np.ndarray],
    comparison: Comparison,
) -> None:
    """Raise `NotExportable` unless the artefact runs at every size of the float artefact."""
    spec = job.spec
    counts = DYNAMIC_BATCHES if spec.dynamic_batch else (spec.input_size[0],)
    generator = np.random.default_rng(0)
    for sides in comparison.sizes:
        for count in counts:
            shape = (count, spec.input_size[1], *sides)
            x = batches[0][:count] if shape[2:] == batches[0].shape[2:] else None
            if x is None or len(x) < count:
                low, high = float(batches[0].min()), float(batches[0].max())
                x = generator.uniform(low, high, shape).astype(batches[0].dtype)
            try:
                want, have = (loaded.runtime(x) for loaded in both)
            except Exception as error:  # the target's runtime refuses
                raise NotExportable(
                    f"the int8 artefact does not run on {'x'.join(map(str, shape))}: "
                    f"{first_line(error)}"
                ) from error
            if [y.shape for y in have] != [y.shape for y in want]:
                raise NotExportable(
                    f"the int8 artefact returns {[y.shape for y in have]}, the float one "
                    f"{[y.shape for y in want]}"
                )
            if not all(np.isfinite(y).all() for y in have):
                raise NotExportable(
                    "the outputs of the int8 artefact are not finite; "
                    "keep more layers in float (keep_float)"
                )


def _comparison_entry(
    both: Sequence[LoadedArtefact], batches: Sequence[np.ndarray], comparison: Comparison
) -> dict[str, Any]:
    """Return how much the outputs differ from those of the float artefact."""
    error = SignalToNoise()
    for batch in batches:
        error.add(*(loaded(batch) for loaded in both))
    assert comparison.agreement is not None
    return {
        "runtime": comparison.runtime,
        "proven": False,
        "why": WHY,
        "compared_with": "the float artefact, on the calibration images",
        "images": error.images,
        "max_abs_error": error.largest,
        "snr_db": error.snr_db,
        "sizes": comparison.sizes,
        "float": comparison.agreement.to_dict(),
    }
