"""Whether an artefact computes what the model computes.

Errors are judged against the spread of the outputs, that is how much they differ from one image to
the next. Against their magnitude, a model that answers every image with nearly the same logits
(as a fresh one does) would pass whatever the artefact made of the image. Where the spread is so
small that rounding alone could hide a fault, the result is "not proven": never "equal".
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zoo.errors import NotExportable, OutputsDiffer
from zoo.runtimes import Runtime

TOLERANCE = 1e-3  # of the outputs' spread
ROUNDING = 1e-5  # of their magnitude: what float32 may lose in a deep model
HALF = (5e-2, 5e-3)  # the same two where weights and perhaps values are float16
CLASSES = (1e-3, 1e-2)  # share of pixels that may get another class: float32, float16
INT8 = 0.25  # of the spread: the root mean square error of what is rounded to int8 everywhere
LEAST_SPREAD = 1e-3  # of their magnitude: below it, nothing is proven
SCALES = (0.3, 1.0, 3.0)
OWN_LOSS = 3.0  # times what the model loses itself in single precision, where that is more
LARGEST_LOSS = 0.05  # of the spread: where single precision loses more, nothing is proven


@dataclass(frozen=True)
class Agreement:
    """How far an artefact's outputs are from the model's.

    Attributes:
        proven: The outputs are equal within `allowed`, and differ enough between images to tell.
        max_abs_error: The largest difference of any output.
        max_rel_error: That, divided by the spread.
        spread: Standard deviation of an output over the images, averaged over the outputs.
        magnitude: The largest absolute output.
        allowed: The largest difference that passes.
        tolerance: `allowed` is this part of the spread, plus `rounding` of the magnitude.
        rounding: See `tolerance`.
        own_error: The largest difference of the model from itself in double precision, where it was
            needed: a deep model may lose more in single precision than `tolerance`, in whatever
            order a runtime adds up. `allowed` is then three times as much.
        measure: `"value"`, or `"class"` where outputs are numbers of classes: then an error is the
            share of pixels with another class, and the spread that of pixels that are not of the
            commonest class. `"rms"` of int8: then `allowed` is for the root mean square error,
            `rms_error`.
        batch_sizes: Batches that were compared.
        images: Images that were compared.
    """

    proven: bool
    max_abs_error: float
    max_rel_error: float | None
    spread: float
    magnitude: float
    allowed: float
    tolerance: float
    rounding: float
    own_error: float | None
    measure: str
    batch_sizes: list[int]
    images: int
    rms_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        images = f"{self.images} images in batches of {', '.join(map(str, self.batch_sizes))}"
        if not self.proven:
            return (
                f"NOT PROVEN equal: the outputs hardly differ between images (spread "
                f"{self.spread:.1e}, magnitude {self.magnitude:.1e}; largest error "
                f"{self.max_abs_error:.1e}) on {images}; export with trained weights"
            )
        if self.rms_error is not None:
            return (
                f"equal but for steps of int8: root mean square error {self.rms_error:.1e}, "
                f"{self.rms_error / self.spread:.1%} of the outputs' spread ({self.tolerance:.0%} "
                f"allowed), on {images}"
            )
        limit = f"{self.tolerance:.0e} allowed"
        if self.own_error is not None:
            limit = f"the model itself loses {self.own_error / self.spread:.1e} in single precision"
        return (
            f"equal: largest error {self.max_abs_error:.1e}, {self.max_rel_error:.1e} of the "
            f"outputs' spread ({limit}), on {images}"
        )


def agree(
    reference: Runtime,
    artefact: Runtime,
    input_size: Sequence[int],
    batch_sizes: Sequence[int],
    *,
    half: bool = False,
    int8: bool = False,
    pixels: bool = False,
    classes: bool = False,
    exact: Callable[[], Runtime] | None = None,
) -> Agreement:
    """Compare an artefact with the model it was made from.

    Args:
        reference: The model, in float32.
        artefact: What was made of it, loaded.
        input_size: C H W, or C D H W.
        batch_sizes: Batches to feed; each is fed images of several kinds and scales.
        half: Whether the artefact holds float16.
        int8: Whether both compute in steps of int8.
        pixels: Whether both take bytes.
        classes: Whether both give numbers of classes.
        exact: Loads the model in double precision, in case single precision is to be judged.

    Raises:
        NotExportable: The outputs differ in number, shape or value, or are not finite.
    """
    wanted: list[list[np.ndarray]] = []
    found: list[list[np.ndarray]] = []
    fed: list[np.ndarray] = []
    for batch in batches(input_size, batch_sizes):
        batch = _as_pixels(batch) if pixels else batch
        wanted.append(reference(batch))
        found.append(artefact(batch))
        fed.append(batch)
        _check_shapes(wanted[-1], found[-1], len(batch))
    judge = functools.partial(
        _judge_classes if classes else _judge_steps if int8 else _judge,
        half=half or int8,
        batch_sizes=sorted(set(batch_sizes)),
        images=sum(map(len, fed)),
    )
    pairs = [(_joined(wanted, i), _joined(found, i)) for i in range(len(wanted[0]))]
    try:
        return severest([judge(mine, its) for mine, its in pairs])
    except NotExportable:
        if exact is None or half or int8 or classes:
            raise
    double = exact()
    values = [double(batch) for batch in fed]
    own = [float(np.abs(mine - _joined(values, i)).max()) for i, (mine, _) in enumerate(pairs)]
    return severest(
        [judge(mine, its, own=loss) for (mine, its), loss in zip(pairs, own, strict=True)]
    )


def _joined(outputs: list[list[np.ndarray]], index: int) -> np.ndarray:
    return np.concatenate([output[index] for output in outputs]).astype(np.float64)


def severest(results: Sequence[Agreement]) -> Agreement:
    """Return the worst of several comparisons: one that proves nothing, else the largest error."""
    return min(results, key=lambda result: (result.proven, -_severity(result)))


def batches(input_size: Sequence[int], batch_sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield random images, B C H W (or volumes): noise and slopes, each at several scales."""
    generator = np.random.default_rng(0)
    channels, *sides = input_size
    ramps = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in sides], indexing="ij")
    ones = (1,) * len(sides)
    for count in batch_sizes:
        for scale in SCALES:
            noise = generator.standard_normal((count, channels, *sides), dtype=np.float32)
            shape = (1 + len(sides), count, channels, *ones)
            start, *slopes = generator.standard_normal(shape, dtype=np.float32)
            smooth = start + sum(a * b for a, b in zip(slopes, ramps, strict=True))
            yield (scale * (noise + smooth)).astype(np.float32)


def _as_pixels(batch: np.ndarray) -> np.ndarray:
    return np.clip(128 + 40 * batch, 0, 255).astype(np.uint8)


def _judge_classes(
    mine: np.ndarray, its: np.ndarray, *, half: bool, batch_sizes: list[int], images: int
) -> Agreement:
    wrong = float(np.mean(mine != its)) if mine.size else 0.0
    _, counts = np.unique(mine, return_counts=True)
    spread = 1 - float(counts.max(initial=0)) / max(mine.size, 1)
    allowed = CLASSES[half]
    if wrong > allowed:
        raise OutputsDiffer(
            f"the artefact computes something else: {wrong:.1%} of the pixels get another class "
            f"({allowed:.1%} is allowed)"
        )
    return Agreement(
        proven=spread > 10 * allowed,
        max_abs_error=wrong,
        max_rel_error=wrong / spread if spread else None,
        spread=spread,
        magnitude=1.0,
        allowed=allowed,
        tolerance=allowed,
        rounding=0.0,
        own_error=None,
        measure="class",
        batch_sizes=batch_sizes,
        images=images,
    )


def _judge_steps(
    mine: np.ndarray, its: np.ndarray, *, half: bool, batch_sizes: list[int], images: int
) -> Agreement:
    """Compare two that round to int8 after every layer.

    Sums are added up in another order, so that a value may be rounded to the next step; what
    follows makes more of it, in a deep model, than of any error of float32. Few outputs change by
    much; something else than the model differs by more than the whole spread on average.
    """
    difference = np.abs(its - mine)
    rms = float(np.sqrt(np.mean(difference**2)))
    spread, magnitude = float(mine.std(axis=0).mean()), float(np.abs(mine).max(initial=0))
    if not rms <= INT8 * spread + ROUNDING * magnitude:
        raise OutputsDiffer(
            f"the artefact computes something else: the root mean square error is {rms:.1e}, the "
            f"spread of the outputs {spread:.1e} ({INT8:.0%} of it is allowed)"
        )
    return Agreement(
        proven=spread > LEAST_SPREAD * magnitude,
        max_abs_error=float(difference.max()),
        max_rel_error=float(difference.max()) / spread if spread else None,
        spread=spread,
        magnitude=magnitude,
        allowed=INT8 * spread + ROUNDING * magnitude,
        tolerance=INT8,
        rounding=ROUNDING,
        own_error=None,
        measure="rms",
        batch_sizes=batch_sizes,
        images=images,
        rms_error=rms,
    )


def _judge(
    mine: np.ndarray,
    its: np.ndarray,
    *,
    half: bool,
    batch_sizes: list[int],
    images: int,
    own: float | None = None,
) -> Agreement:
    tolerance, rounding = HALF if half else (TOLERANCE, ROUNDING)
    if not np.isfinite(mine).all():
        raise NotExportable(
            "the model's own outputs are not finite on random images; nothing to compare"
        )
    error = float(np.abs(its - mine).max()) if mine.size else 0.0
    spread = float(mine.std(axis=0).mean()) if mine.size else 0.0
    magnitude = float(np.abs(mine).max()) if mine.size else 0.0
    allowed = max(tolerance * spread + rounding * magnitude, OWN_LOSS * (own or 0.0))
    if half and not np.isfinite(its).all():
        raise NotExportable("the artefact's outputs are not finite: float16 ends at 65504")
    if not error <= allowed:  # also where the error is not a number
        part = f", {error / spread:.1e} of their spread" if spread else ""
        raise OutputsDiffer(
            f"the artefact computes something else: outputs differ by up to {error:.1e}{part} "
            f"({allowed:.1e} is allowed)"
        )
    return Agreement(
        proven=spread > max(LEAST_SPREAD, rounding) * magnitude
        and (own or 0.0) <= LARGEST_LOSS * spread,
        max_abs_error=error,
        max_rel_error=error / spread if spread else None,
        spread=spread,
        magnitude=magnitude,
        allowed=allowed,
        tolerance=tolerance,
        rounding=rounding,
        own_error=own,
        measure="value",
        batch_sizes=batch_sizes,
        images=images,
    )


def _severity(result: Agreement) -> float:
    return math.inf if result.max_rel_error is None else result.max_rel_error


def _check_shapes(wanted: list[np.ndarray], found: list[np.ndarray], batch: int) -> None:
    mine, its = [y.shape for y in wanted], [y.shape for y in found]
    if mine != its:
        raise OutputsDiffer(
            f"the artefact computes something else: at a batch of {batch} its outputs have the "
            f"shapes {its}, the model's {mine}"
        )
