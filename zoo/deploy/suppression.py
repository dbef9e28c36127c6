"""Non-maximum suppression in tensor operators that every format has, for artefacts."""

import torch
from torch import Tensor

from zoo.deploy.detections import CANDIDATES, DETECTIONS, LEAST_SCORE, MAX_OVERLAP

# A box that is suppressed suppresses nothing, so a chain of overlapping boxes is decided from its
# highest score on, at least one box per round. A longer chain of boxes would end undecided: a box
# of it may stay that overlaps with a stronger one.
ROUNDS = 64


def suppress(output: Tensor) -> Tensor:
    """Return the detections of `zoo.deploy.detections.detect` as rows, B D 6.

    Args:
        output: Boxes and scores of all anchors, B A 4+K.

    Returns:
        x1 y1 x2 y2 as shares of the width and the height, score, class; the highest score first.
        Unused rows have score 0 and class -1.
    """
    scores = output[..., 4:]
    classes = scores.shape[2]
    count = scores.shape[1] * classes
    best, index = scores.flatten(1).topk(min(CANDIDATES, count), dim=1)
    anchors = torch.div(index, classes, rounding_mode="floor")
    labels = index - anchors * classes
    # OpenVINO cannot gather from a part of a tensor: gather whole rows, and take the part after it.
    boxes = output.gather(1, anchors[..., None].expand(-1, -1, 4 + classes))[..., :4]
    least = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    most = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (most - least).clamp(min=0).prod(dim=3)
    areas = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=2)
    union = areas[:, :, None] + areas[:, None, :] - common
    overlap = common / union.clamp(min=1e-12)
    clash = (overlap > MAX_OVERLAP) & (labels[:, :, None] == labels[:, None, :])
    earlier = torch.ones_like(overlap[0]).tril(-1)  # boxes with a higher score
    stronger = clash.to(output.dtype) * earlier
    is_candidate = (best > LEAST_SCORE).to(output.dtype)
    kept = is_candidate
    for _ in range(min(ROUNDS, best.shape[1])):
        defeats = torch.bmm(stronger, kept[..., None])[..., 0]
        kept = is_candidate * (defeats == 0).to(output.dtype)
    label = torch.where(kept > 0, labels.to(output.dtype), -1.0)
    final = best * kept
    rows = torch.cat([boxes * kept[..., None], final[..., None], label[..., None]], dim=2)
    order = final.topk(min(DETECTIONS, best.shape[1]), dim=1).indices
    return rows.gather(1, order[..., None].expand(-1, -1, 6))
