"""Detectors on backbones: anchors, losses of torchvision, every backbone, exports, errors."""

import numpy as np
import pytest
import torch
from support import images
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms

import zoo
from zoo import detectors
from zoo.deploy import agreement, detections
from zoo.deploy.suppression import suppress
from zoo.errors import OutputsDiffer
from zoo.registry import DETECTORS

TINY = "simplenet_cifar_310k"


def build(name="ssdlite", encoder=TINY, **kwargs):
    torch.manual_seed(0)
    return zoo.create_model(
        name, encoder=encoder, num_classes=kwargs.pop("num_classes", 4), **kwargs
    )


def some_targets():
    targets = torch.zeros(2, 3, 6)
    targets[..., 0] = -1
    targets[0, 0] = torch.tensor([3, 4, 5, 14, 22, 0])
    targets[0, 1] = torch.tensor([0, 20, 1, 31, 30, 0])
    return targets


# -- the model ------------------------------------------------------------------------------------


def test_anchors_are_torchvisions_moved_by_half_a_stride():
    levels = [torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 3, 4)]
    shapes = [[(12.0, 12.0), (24.0, 12.0)], [(24.0, 24.0), (48.0, 24.0)]]
    ours = detectors.Anchors([4, 8], shapes)(levels)
    theirs = AnchorGenerator(((12,), (24,)), ((1.0,), (1.0,)))
    whole = ImageList(torch.zeros(1, 1, 24, 32), [(24, 32)])
    want = theirs(whole, levels)[0]
    squares = ours.reshape(-1, 2, 4)[:, 0]
    half = torch.tensor([2.0] * 48 + [4.0] * 12)[:, None]
    torch.testing.assert_close(squares, want + half)
    wide = ours.reshape(-1, 2, 4)[:, 1]
    assert torch.equal(wide[:, 2] - wide[:, 0], 2 * (wide[:, 3] - wide[:, 1]))


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("ssdlite", "mobilemamba_t2"), ("retinanet", TINY), ("fcos", "timm/resnet10t")],
)
def test_a_detector_returns_boxes_and_scores_and_trains_every_parameter(name, encoder):
    model = build(name, encoder)
    x, targets = images(2, (64, 96)), some_targets()
    loss = model.train().loss(model(x), targets)
    loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not unused
    assert loss.isfinite()
    with torch.no_grad():
        output = model.eval()(x)
    assert output.shape[0] == 2
    assert output.shape[2] == 4 + 4
    assert 0 <= output.min() <= output.max() <= 1
    assert (output[..., 2:4] >= output[..., :2]).all()
    model.reset_classifier(7)
    with torch.no_grad():
        assert model(x).shape[2] == 4 + 7
    assert all(isinstance(part, torch.nn.Conv2d) for part in model.get_classifier())
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))


@pytest.mark.parametrize("name", DETECTORS)
def test_crowds_and_rows_of_no_class_are_not_trained_on(name):
    model = build(name, min_stride=2).train()
    outputs, targets = model(images(2, (32, 48))), some_targets()
    expected = model.loss(outputs, targets)
    more = torch.cat([targets, torch.tensor([[[1.0, 3, 3, 25, 25, 1]]] * 2)], dim=1)
    assert torch.equal(model.loss(outputs, more), expected)
    none = targets.clone()
    none[..., 0] = -1
    assert model.loss(outputs, none).isfinite()
    assert not torch.equal(model.loss(outputs, none), expected)


def test_the_loss_of_ssdlite_is_that_of_torchvisions_forward():
    """The matching that `SSD.forward` does before its loss is ours as well."""
    model = build(min_stride=2).train()
    x, targets = images(2, (32, 48)), some_targets()
    outputs = model(x)
    expected = model.loss(outputs, targets)

    class Fixed(torch.nn.Module):
        def __init__(self, result):
            super().__init__()
            self.result, self.out_channels = result, [1]

        def forward(self, *_):
            return self.result

    head = {key: outputs[key] for key in ("bbox_regression", "cls_logits")}
    theirs = SSD(Fixed(x), Fixed([outputs["anchors"]] * 2), (32, 48), 5, head=Fixed(head)).train()
    whole = ImageList(x, [(32, 48)] * 2)
    del theirs.transform
    theirs.__dict__["transform"] = lambda _, wanted: (whole, wanted)
    wanted = [
        {"boxes": rows[rows[:, 0] >= 0][:, 1:5], "labels": rows[rows[:, 0] >= 0][:, 0].long() + 1}
        for rows in targets
    ]
    losses = theirs(list(x), wanted)
    torch.testing.assert_close(sum(losses.values()), expected)


def test_a_perfect_head_finds_the_boxes():
    """Boxes that are coded by torchvision's coder come back, as shares of the image."""
    model = build("retinanet", min_stride=2).eval()
    levels = [torch.zeros(1, 1, 16, 24)] * 1
    anchors = detectors.Anchors([2], [[(6.0, 6.0)]])(levels)
    boxes = torch.tensor([[3.0, 5.0, 9.0, 12.0]]).expand_as(anchors)
    codes = model._rules.box_coder.encode_single(boxes, anchors)
    torch.testing.assert_close(model._boxes(codes[None], anchors)[0], boxes, rtol=1e-4, atol=1e-3)


def test_encoder_weights_and_whole_weights_are_loaded(tmp_path):
    backbone, model = zoo.create_model(TINY), build()
    torch.save(backbone.state_dict(), tmp_path / "encoder.pt")
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    loaded = build(checkpoint_path=str(tmp_path / "encoder.pt"))
    own = dict(backbone.named_parameters())
    shared = [n for n, p in loaded.encoder.named_parameters() if torch.equal(p, own[n])]
    assert len(shared) == len(list(loaded.encoder.parameters()))
    torch.manual_seed(1)
    again = zoo.create_model(
        "ssdlite", encoder=TINY, num_classes=4, checkpoint_path=str(tmp_path / "whole.pt")
    )
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


REFUSED = [
    ({"encoder": "wavemix_192_16_l3"},
     "strides 4, 4, 4, 4; ssdlite needs strides that double from min_stride=4 on, such as"),
    ({"min_stride": 64, "name": "fcos"}, "fcos needs strides that double from min_stride=64 on"),
    ({"encoder": None}, r"ssdlite needs a backbone: set encoder \(on the command line model.enc"),
    ({"encoder": "lightm_unet_2d"}, "encoder=lightm_unet_2d is for segmentation"),
    ({"channels": 64}, "channels=64 has no effect on ssdlite; leave it out"),
    ({"name": "fcos", "channels": 48}, "channels=48 must be a multiple of 32"),
    ({"min_stride": 0}, "min_stride=0: must be a whole number"),
    ({"features_only": True}, "features_only=True has no effect on ssdlite"),
    ({"drop_rate": 0.1}, "drop_rate=0.1 has no effect on ssdlite"),
    ({"name": "retinanets"}, "unknown model 'retinanets'; did you mean 'retinanet'"),
    ({"name": TINY}, f"encoder={TINY} has no effect on {TINY}; it is for unet, .*fcos"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused_in_one_line(arguments, message):
    with pytest.raises(zoo.ZooError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


def test_detectors_are_counted_up_to_their_boxes_and_scores():
    model = build("fcos", min_stride=2).eval()
    counts = zoo.count(model, (1, 3, 32, 32))
    head = counts.by_module(1)["head"]
    assert 0 < head["macs"] < counts.macs
    assert zoo.model_info("fcos")["task"] == "detection"


# -- detections -----------------------------------------------------------------------------------


def random_output(images=2, anchors=200, classes=5, seed=0):
    torch.manual_seed(seed)
    corner, side = torch.rand(images, anchors, 2) * 0.7, torch.rand(images, anchors, 2) * 0.3
    return torch.cat([corner, corner + side, torch.rand(images, anchors, classes) ** 4], dim=-1)


def test_suppression_is_that_of_torchvision():
    output = random_output()
    rows = suppress(output)
    assert rows.shape == (2, detections.DETECTIONS, 6)
    for image, own in zip(output, rows, strict=True):
        best, index = image[:, 4:].flatten().topk(detections.CANDIDATES)
        boxes, classes = image[index // 5, :4], index % 5
        enough = best > detections.LEAST_SCORE
        kept = batched_nms(boxes[enough], best[enough], classes[enough], detections.MAX_OVERLAP)
        kept = kept[: detections.DETECTIONS]
        found = detections.detect(image.numpy())
        for other in (found, detections.from_rows(own.numpy())):
            np.testing.assert_array_equal(other.boxes, boxes[kept].numpy())
            np.testing.assert_array_equal(other.scores, best[kept].numpy())
            np.testing.assert_array_equal(other.classes, classes[kept].numpy())


def test_unused_rows_have_no_class_and_suppression_is_idempotent():
    output = random_output(anchors=30, classes=2)
    output[0, :, 4:] = 0
    rows = suppress(output)
    assert (rows[0] == torch.tensor([0, 0, 0, 0, 0, -1.0])).all()
    assert len(detections.from_rows(rows[0].numpy())) == 0
    as_output = detections.to_output(rows[1].numpy(), 2)
    first, again = detections.from_rows(rows[1].numpy()), detections.detect(as_output)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.classes, again.classes)


class Returns:
    """A runtime that returns given outputs."""

    name = "fixed"

    def __init__(self, change=lambda rows: rows):
        self.change = change

    def __call__(self, batch):
        seed = int(1000 * float(np.abs(batch).sum()) % 1e6)
        rows = [suppress(random_output(1, 50, 2, seed + i))[0] for i in range(len(batch))]
        return [self.change(torch.stack(rows).numpy())]


def test_artefacts_with_suppression_are_compared_without_regard_to_order():
    def judge(change, half=False):
        return agreement.compare_outputs(
            Returns(), Returns(change), (3, 8, 8), [1, 2], postprocessing="nms", half=half
        )

    same = judge(lambda rows: rows[:, ::-1].copy())
    assert same.proven
    assert (same.max_abs_error, same.measure) == (0, "detections")
    rounding = np.array([1e-2] * 5 + [0], np.float32)
    assert judge(lambda rows: rows + rounding, half=True).proven
    for column, size in ((0, 0.01), (4, 0.01), (5, 1)):

        def change(rows, column=column, size=size):
            rows[:, :5, column] += size
            return rows

        with pytest.raises(OutputsDiffer, match="of the detections differ"):
            judge(change)


@pytest.mark.parametrize("postprocess", [False, True])
def test_exports_with_and_without_suppression(postprocess, tmp_path):
    """To OpenVINO, which goes by way of ONNX; test_detection evaluates ONNX files."""
    model = build(num_classes=2, min_stride=4).eval()
    with torch.no_grad():  # weights that tell images apart, as trained ones do
        for layer in model.head.classification_head.module_list:
            layer[1].weight.mul_(40)
    artefact = zoo.export(
        model, "openvino", tmp_path, input_size=(1, 3, 32, 32), postprocess=postprocess,
        preprocess=postprocess, origin=zoo.deploy.manifest.Origin(
            "ssdlite", {"encoder": TINY}, class_names=["cat", "dog"],
            preprocessing={"mean": [0.5] * 3, "std": [0.2] * 3},
        ),
    )  # fmt: skip
    assert artefact.agreement.proven
    manifest = artefact.manifest
    assert (manifest["task"], manifest["class_names"]) == ("detection", ["cat", "dog"])
    assert manifest["postprocessing"] == ("nms" if postprocess else None)
    assert manifest["outputs"][0]["shape"][2] == 6
    assert manifest["input"]["resize"] == "fit"
    assert "non-maximum suppression" in manifest["outputs"][0]["meaning"] or postprocess
