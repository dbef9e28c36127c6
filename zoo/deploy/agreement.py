"""Decide whether an artefact computes what the model computes.

Errors are compared with the spread of the outputs: how much these differ between images. Compared
with their magnitude, an artefact that ignores the image could pass, because an untrained model
returns nearly the same logits for every image. If the spread is so small that rounding alone could
hide a fault, the result is "not proven", never "equal".
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zoo.errors import NotExportable, OutputsDiffer
from zoo.runtimes import Runtime

# The largest allowed error is TOLERANCE * spread + ROUNDING * magnitude of the outputs.
TOLERANCE, ROUNDING = 1e-3, 1e-5  # for float32; a deep model may lose that much by rounding
HALF_TOLERANCES = (5e-2, 5e-3)  # both for float16
JUMP_TOLERANCE = 2e-2  # instead of TOLERANCE for a model with signs, of which rounding flips some
DETECTION_TOLERANCES = (1e-2, 1e-1)  # share of detections without a partner, likewise
SAME_BOX = (1e-3, 2e-2)  # largest difference of a share of the image and of a score, likewise
CLASS_TOLERANCES = (1e-3, 1e-2)  # share of pixels with another class: float32, float16
INT8_TOLERANCE = 0.25  # allowed root mean square error of an int8 graph, as a share of the spread
MIN_SPREAD = 1e-3  # as a share of the magnitude; with less, nothing is proven
INPUT_SCALES = (0.3, 1.0, 3.0)  # standard deviations of the random images
# A deep model may lose more than the tolerance in float32. Then LOSS_FACTOR times its loss is
# allowed; if the loss exceeds LOSS_LIMIT of the spread, nothing is proven.
LOSS_FACTOR, LOSS_LIMIT = 3.0, 0.05
UNTRAINED_SPREAD = 0.2  # with a smaller share of the magnitude, all images get nearly the same
# Ways out, for messages.
OTHER_FORMAT = "choose another format"
UNTRAINED = (
    "the outputs hardly differ between images, as those of an untrained model: train it for longer,"
    " or choose another format"
)


@dataclass(frozen=True)
class Agreement:
    """How close an artefact's outputs are to the model's.

    Attributes:
        proven: The errors are within `allowed`, and the outputs differ enough between images to
            reveal a fault.
        max_abs_error: The largest difference of any output value.
        max_rel_error: `max_abs_error / spread`; None if the spread is zero.
        spread: Standard deviation of an output value over the images, averaged over all values.
        magnitude: The largest absolute output value.
        allowed: The largest allowed difference: `tolerance * spread + rounding * magnitude`, or
            more, see `own_error`.
        tolerance: Allowed error as a share of the spread.
        rounding: Allowed error as a share of the magnitude.
        own_error: The largest difference between the model in float32 and in float64; only measured
            if the error exceeds the tolerance. `allowed` is then three times this difference.
        measure: `"value"`; `"class"` for class maps, where the error is the share of pixels with
            another class and the spread is the share of pixels not of the commonest class;
            `"detections"`, where the error is the share that the other side does not have and the
            spread is the share that another image does not have; `"rms"` for int8 graphs, where
            `allowed` applies to `rms_error`.
        batch_sizes: Batch sizes that were compared.
        images: Number of images that were compared.
        rms_error: Root mean square error; only for int8 graphs.
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
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        images = f"{self.images} images in batches of {', '.join(map(str, self.batch_sizes))}"
        if not self.proven:
            return (
                f"NOT PROVEN equal: the outputs hardly differ between images (spread "
                f"{self.spread:.1e}, magnitude {self.magnitude:.1e}, largest error "
                f"{self.max_abs_error:.1e}) on {images}; export with trained weights"
            )
        if self.rms_error is not None:
            return (
                f"equal up to int8 rounding: root mean square error {self.rms_error:.1e}, "
                f"{self.rms_error / self.spread:.1%} of the outputs' spread "
                f"(allowed: {self.tolerance:.0%}), on {images}"
            )
        limit = f"allowed: {self.tolerance:.0e}"
        if self.own_error is not None:
            limit = f"the model itself loses {self.own_error / self.spread:.1e} in float32"
        return (
            f"equal: largest error {self.max_abs_error:.1e}, {self.max_rel_error:.1e} of the "
            f"outputs' spread ({limit}), on {images}"
        )


def compare_outputs(
    reference: Runtime,
    artefact: Runtime,
    input_size: Sequence[int],
    batch_sizes: Sequence[int],
    *,
    half: bool = False,
    int8: bool = False,
    pixels: bool = False,
    jumps: bool = False,
    postprocessing: str | None = None,
    load_double: Callable[[], Runtime] | None = None,
) -> Agreement:
    """Compare an artefact with its model on random images of several kinds and scales.

    Args:
        reference: The model in float32.
        artefact: The loaded artefact.
        input_size: C H W, or C D H W for volumes.
        batch_sizes: Batch sizes to compare.
        half: The artefact is in float16.
        int8: Both round to int8 after each layer.
        pixels: Both take uint8.
        jumps: The model takes signs of values, which rounding may flip.
        postprocessing: What both do after the model: with `"argmax"` they return class maps (B H W
            integers), with `"nms"` detections (B D 6).
        load_double: Loads the model in float64. Called only if the error exceeds the tolerance.

    Raises:
        NotExportable: The outputs differ in number, shape or value, or are not finite.
    """
    expected: list[list[np.ndarray]] = []
    actual: list[list[np.ndarray]] = []
    inputs: list[np.ndarray] = []
    for batch in random_batches(input_size, batch_sizes):
        batch = _to_pixels(batch) if pixels else batch
        expected.append(reference(batch))
        actual.append(artefact(batch))
        inputs.append(batch)
        _check_shapes(expected[-1], actual[-1], len(batch))
    discrete = {"argmax": _judge_classes, "nms": _judge_detections}.get(postprocessing or "")
    judge_values = functools.partial(_judge_values, jumps=jumps)
    judge = functools.partial(
        discrete or (_judge_int8 if int8 else judge_values),
        half=half or int8,
        batch_sizes=sorted(set(batch_sizes)),
        images=sum(map(len, inputs)),
    )
    pairs = [(_concatenate(expected, i), _concatenate(actual, i)) for i in range(len(expected[0]))]
    try:
        return worst([judge(want, have) for want, have in pairs])
    except NotExportable:
        if load_double is None or half or int8 or discrete is not None:
            raise
    double = load_double()
    exact = [double(batch) for batch in inputs]
    losses = [
        float(np.abs(want - _concatenate(exact, i)).max()) for i, (want, _) in enumerate(pairs)
    ]
    return worst(
        [judge(want, have, own=loss) for (want, have), loss in zip(pairs, losses, strict=True)]
    )


def _concatenate(outputs: list[list[np.ndarray]], index: int) -> np.ndarray:
    """Return one output of all batches in float64."""
    return np.concatenate([output[index] for output in outputs]).astype(np.float64)


def worst(results: Sequence[Agreement]) -> Agreement:
    """Return the worst of several results: one that is not proven, else the largest error."""
    return min(results, key=lambda result: (result.proven, -_relative_error(result)))


def random_batches(input_size: Sequence[int], batch_sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield random images: noise plus a linear gradient, at several scales; the same each time.

    Args:
        input_size: C H W, or C D H W for volumes.
        batch_sizes: Batch sizes; each is yielded once for each scale.

    Yields:
        B C H W (B C D H W), float32.
    """
    generator = np.random.default_rng(0)
    channels, *sides = input_size
    ramps = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in sides], indexing="ij")
    ones = (1,) * len(sides)
    for count in batch_sizes:
        for scale in INPUT_SCALES:
            noise = generator.standard_normal((count, channels, *sides), dtype=np.float32)
            shape = (1 + len(sides), count, channels, *ones)
            start, *slopes = generator.standard_normal(shape, dtype=np.float32)
            smooth = start + sum(a * b for a, b in zip(slopes, ramps, strict=True))
            yield (scale * (noise + smooth)).astype(np.float32)


def _to_pixels(batch: np.ndarray) -> np.ndarray:
    return np.clip(128 + 40 * batch, 0, 255).astype(np.uint8)


def _judge_classes(
    want: np.ndarray, have: np.ndarray, *, half: bool, batch_sizes: list[int], images: int
) -> Agreement:
    """Compare class maps by the share of pixels with the same class."""
    wrong = float(np.mean(want != have)) if want.size else 0.0
    _, counts = np.unique(want, return_counts=True)
    spread = 1 - float(counts.max(initial=0)) / max(want.size, 1)
    allowed = CLASS_TOLERANCES[half]
    found = f"{wrong:.1%} of the pixels get another class"
    return _judge_share(wrong, spread, allowed, found, "class", 10, batch_sizes, images)


def _judge_detections(
    want: np.ndarray, have: np.ndarray, *, half: bool, batch_sizes: list[int], images: int
) -> Agreement:
    """Compare detections B D 6 by the share that has no partner on the other side.

    Partners have the same class, and corners and scores within `SAME_BOX`. Their order does not
    matter, and a few may lack a partner: rounding decides between detections of nearly one score.
    """
    close = SAME_BOX[half]
    pairs = list(zip(want, have, strict=True))
    wrong = max(_share_alone(pairs, close), _share_alone([(b, a) for a, b in pairs], close))
    shifted = list(zip(want, np.roll(want, 1, axis=0), strict=True))
    spread = _share_alone(shifted, close)
    allowed = DETECTION_TOLERANCES[half]
    found = f"{wrong:.1%} of the detections differ"
    return _judge_share(wrong, spread, allowed, found, "detections", 5, batch_sizes, images)


def _judge_share(
    wrong: float,
    spread: float,
    allowed: float,
    found: str,
    measure: str,
    margin: int,
    batch_sizes: list[int],
    images: int,
) -> Agreement:
    """Judge a share of wrong values.

    Args:
        wrong: The share.
        spread: The share by which different images differ.
        allowed: The largest share that is not an error.
        found: What is wrong, for the message.
        measure: What the share is of.
        margin: The comparison proves something if `spread` is more than this times `allowed`.
        batch_sizes: The batch sizes that were compared.
        images: How many images were compared.

    Raises:
        OutputsDiffer: Too much is wrong.
    """
    if wrong > allowed:
        raise OutputsDiffer(
            f"the artefact does not match the model: {found}; at most {allowed:.1%} is allowed;"
            f" {OTHER_FORMAT}, or set export.fuse=false"
        )
    return Agreement(
        proven=spread > margin * allowed,
        max_abs_error=wrong,
        max_rel_error=wrong / spread if spread else None,
        spread=spread,
        magnitude=1.0,
        allowed=allowed,
        tolerance=allowed,
        rounding=0.0,
        own_error=None,
        measure=measure,
        batch_sizes=batch_sizes,
        images=images,
    )


def _share_alone(pairs: list[tuple[np.ndarray, np.ndarray]], close: float) -> float:
    """Return the share of detections, D 6 on either side, that have no partner on the second."""
    alone = total = 0
    for first, second in pairs:
        first, second = first[first[:, 5] >= 0], second[second[:, 5] >= 0]
        same = first[:, None, 5] == second[None, :, 5]
        same &= np.abs(first[:, None, :5] - second[None, :, :5]).max(axis=2) <= close
        alone += int((~same.any(axis=1)).sum())
        total += len(first)
    return alone / total if total else 0.0


def _judge_int8(
    want: np.ndarray, have: np.ndarray, *, half: bool, batch_sizes: list[int], images: int
) -> Agreement:
    """Compare the outputs of two int8 graphs by their root mean square error.

    Runtimes add in different orders, so a value may round to the neighbouring int8 step, and later
    layers amplify that more than any float32 error. This changes few outputs by much, while a fault
    changes all of them by more than the spread on average.
    """
    difference = np.abs(have - want)
    rms = float(np.sqrt(np.mean(difference**2)))
    spread, magnitude = float(want.std(axis=0).mean()), float(np.abs(want).max(initial=0))
    allowed = INT8_TOLERANCE * spread + ROUNDING * magnitude
    if not rms <= allowed:  # also if the error is NaN
        raise OutputsDiffer(
            f"the artefact does not match the model: the root mean square error is {rms:.1e} at a "
            f"spread of {spread:.1e}; at most {INT8_TOLERANCE:.0%} of the spread is allowed; "
            + (UNTRAINED if spread < UNTRAINED_SPREAD * magnitude else OTHER_FORMAT)
        )
    return Agreement(
        proven=spread > MIN_SPREAD * magnitude,
        max_abs_error=float(difference.max()),
        max_rel_error=float(difference.max()) / spread if spread else None,
        spread=spread,
        magnitude=magnitude,
        allowed=allowed,
        tolerance=INT8_TOLERANCE,
        rounding=ROUNDING,
        own_error=None,
        measure="rms",
        batch_sizes=batch_sizes,
        images=images,
        rms_error=rms,
    )


def _judge_values(
    want: np.ndarray,
    have: np.ndarray,
    *,
    half: bool,
    batch_sizes: list[int],
    images: int,
    jumps: bool = False,
    own: float | None = None,
) -> Agreement:
    """Compare outputs by their largest difference.

    Args:
        want: The model's output for all images, N ...
        have: The artefact's output for the same images.
        half: Whether the artefact is in float16.
        batch_sizes: Batch sizes, for the result.
        images: Number of images, for the result.
        jumps: The model takes signs of values.
        own: The largest difference between the model in float32 and in float64, if measured.
    """
    tolerance, rounding = HALF_TOLERANCES if half else (TOLERANCE, ROUNDING)
    tolerance = max(tolerance, JUMP_TOLERANCE) if jumps else tolerance
    if not np.isfinite(want).all():
        raise NotExportable(
            "the model's outputs are not finite on random images, so the artefact cannot be "
            "verified; export with trained weights"
        )
    error = float(np.abs(have - want).max()) if want.size else 0.0
    spread = float(want.std(axis=0).mean()) if want.size else 0.0
    magnitude = float(np.abs(want).max()) if want.size else 0.0
    allowed = max(tolerance * spread + rounding * magnitude, LOSS_FACTOR * (own or 0.0))
    if half and not np.isfinite(have).all():
        raise OutputsDiffer(
            "the artefact's outputs are not finite: values exceed 65504, the largest float16; "
            "leave out export.half"
        )
    if not error <= allowed:  # also if the error is NaN
        share = f" ({error / spread:.1e} of their spread)" if spread else ""
        raise OutputsDiffer(
            f"the artefact does not match the model: outputs differ by up to {error:.1e}{share}; "
            f"at most {allowed:.1e} is allowed; {OTHER_FORMAT}, or set export.fuse=false"
        )
    return Agreement(
        proven=spread > max(MIN_SPREAD, rounding) * magnitude
        and (own or 0.0) <= LOSS_LIMIT * spread,
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


def _relative_error(result: Agreement) -> float:
    return math.inf if result.max_rel_error is None else result.max_rel_error


def _check_shapes(want: list[np.ndarray], have: list[np.ndarray], batch: int) -> None:
    expected, actual = [y.shape for y in want], [y.shape for y in have]
    if expected != actual:
        raise OutputsDiffer(
            f"the artefact does not match the model: for a batch of {batch} it returns shapes "
            f"{actual}, the model {expected}"
        )
