"""From the boxes and scores of a detector to detections: non-maximum suppression, in NumPy.

A detector returns a box and a score of each class for every anchor, A 4+K. An artefact with
`postprocessing: nms` returns the detections themselves, D 6 (`zoo.deploy.suppression`). Both are
turned into the same `Detections`.
"""

from dataclasses import dataclass

import numpy as np

CANDIDATES = 300  # best pairs of anchor and class that enter suppression
DETECTIONS = 100  # most per image
MAX_OVERLAP = 0.5  # intersection over union of two detections of one class
LEAST_SCORE = 0.01


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the highest score first.

    Attributes:
        boxes: x1 y1 x2 y2 as shares of the width and the height, n 4.
        scores: In 0..1, n.
        classes: Class numbers, n.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


def detect(output: np.ndarray) -> Detections:
    """Return the detections in the output of a detector for one image, A 4+K.

    Of two boxes of one class that overlap by more than `MAX_OVERLAP`, the one with the higher score
    is kept.
    """
    boxes, scores = output[:, :4], output[:, 4:]
    flat = scores.reshape(-1)
    order = np.argsort(-flat, kind="stable")[:CANDIDATES]
    order = order[flat[order] > LEAST_SCORE]
    anchors, classes = np.divmod(order, scores.shape[1])
    boxes = boxes[anchors]
    clash = (overlaps(boxes, boxes) > MAX_OVERLAP) & (classes[:, None] == classes)
    kept: list[int] = []
    suppressed = np.zeros(len(order), bool)
    for index in range(len(order)):
        if not suppressed[index]:
            kept.append(index)
            suppressed |= clash[index]
    kept = kept[:DETECTIONS]
    return Detections(boxes[kept], flat[order][kept], classes[kept])


def from_rows(output: np.ndarray) -> Detections:
    """Return the detections in the rows of an artefact with suppression, D 6."""
    rows = output[output[:, 5] >= 0]
    return Detections(rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64))


def to_output(rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Return rows of detections as the output of a detector with one anchor each: D 6 -> D 4+K."""
    output = np.zeros((len(rows), 4 + num_classes), np.float32)
    output[:, :4] = rows[:, :4]
    used = np.flatnonzero(rows[:, 5] >= 0)
    output[used, 4 + np.rint(rows[used, 5]).astype(np.int64)] = rows[used, 4]
    return output


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes n 4 and m 4, as n m; 0 without any area."""
    least = np.maximum(one[:, None, :2], other[None, :, :2])
    most = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.clip(most - least, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1] - common
    return common / np.maximum(union, 1e-12)
