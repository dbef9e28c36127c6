"""Means against rare classes: class weights, focal loss, a balanced order, macro metrics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchmetrics.classification import MulticlassF1Score, MulticlassRecall

from zoo.command_line.composition import run as run_command
from zoo.data.samplers import BalancedBatches, TrainBatches
from zoo.errors import BadInput
from zoo.settings import TrainConfig
from zoo.training import builders
from zoo.training.checks import check_train
from zoo.training.classification import ClassificationMeter
from zoo.training.losses import create_loss

from .conftest import checkpoint_of, resume_run

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 4.0])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_loss_without_focus_is_the_cross_entropy(
    batch, smoothing: float, weights: Any, soft: bool
) -> None:
    logits, targets = batch
    weights = None if weights is None else weights.double()
    given = F.one_hot(targets, 4).double() * 0.7 + 0.075 if soft else targets
    arguments: dict[str, Any] = {"label_smoothing": smoothing, "class_weights": weights}
    found = create_loss("focal", gamma=0, **arguments)(logits, given)
    torch.testing.assert_close(found, create_loss("cross-entropy", **arguments)(logits, given))


def test_focal_loss_is_its_formula_and_has_gradients_of_certain_images(batch) -> None:
    logits, targets = batch
    p = logits.softmax(1)[range(6), targets]
    found = create_loss("focal", gamma=1.5)(logits, targets)
    torch.testing.assert_close(found, (-((1 - p) ** 1.5) * p.log()).mean())
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    create_loss("focal", gamma=0.5)(certain, torch.tensor([0])).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_class_weights_scale_the_cross_entropy(batch) -> None:
    logits, targets = batch
    losses = F.cross_entropy(logits, targets, reduction="none")
    scale = WEIGHTS.double()[targets]
    found = create_loss("cross-entropy", class_weights=WEIGHTS.double())(logits, targets)
    torch.testing.assert_close(found, (losses * scale).sum() / scale.sum())
    with pytest.raises(BadInput, match=r"class_weights has no effect with train\.loss=bce"):
        create_loss("bce", class_weights=WEIGHTS)
    with pytest.raises(BadInput, match=r"gamma=-1 must be a number, at least 0"):
        create_loss("focal", gamma=-1)


def test_balanced_weights_are_one_on_average_over_the_images() -> None:
    counts = [6, 0, 3, 1]
    data: Any = SimpleNamespace(num_classes=4, class_names=None, class_counts=lambda: counts)
    weights = builders._class_weights(TrainConfig(class_weights="balanced"), data)
    assert weights is not None
    products = [w * n for w, n in zip(weights.tolist(), counts, strict=True)]
    assert products == pytest.approx([10 / 3, 0, 10 / 3, 10 / 3])
    assert weights[1] == 1
    with pytest.raises(BadInput, match=r"class_weights has 2 numbers, but the data has 4 classes"):
        builders._class_weights(TrainConfig(class_weights=[1, 2]), data)


@pytest.mark.parametrize("weights", ["equal", [], [0, 0], [-1.0, 1], [float("nan"), 1], ["a"], 3])
def test_invalid_class_weights_are_errors(weights: Any) -> None:
    with pytest.raises(BadInput, match=r"train\.class_weights=.* must be balanced, or a list"):
        check_train(TrainConfig(class_weights=weights))


def test_one_remedy_at_a_time() -> None:
    with pytest.raises(BadInput, match="leave one of them out"):
        check_train(TrainConfig(class_weights="balanced", sampler="balanced"))


def images_of(batches: TrainBatches, epoch: int) -> list[int]:
    batches.set_epoch(epoch)
    return [index for batch in batches for _, index in batch]


def test_a_balanced_order_has_all_classes_alike_and_continues_within_an_epoch() -> None:
    labels = [0] * 900 + [1] * 90 + [2] * 10
    batches = BalancedBatches(labels, 10, seed=3)
    chosen = images_of(batches, 0)
    assert len(chosen) == 1000
    shares = torch.tensor([labels[index] for index in chosen]).bincount() / 1000
    assert (shares - 1 / 3).abs().max() < 0.06  # four standard deviations
    assert len({index for index in chosen if index < 900}) > 200  # not the same images
    assert images_of(batches, 1) != chosen
    batches.set_epoch(0)
    batches.start_batch = 40
    assert [index for batch in batches for _, index in batch] == chosen[400:]


def test_macro_metrics_are_those_of_torchmetrics_and_name_few_classes() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(60, 4), torch.randint(0, 3, (60,))  # no image of class 3
    meter = ClassificationMeter(4, ["ant", "bee", "cat", "zebra\udce9"])
    meter.update(torch.zeros(60), logits, targets)
    result = meter.compute()
    assert result.macro_f1 == pytest.approx(float(MulticlassF1Score(4)(logits, targets)))
    assert result.macro_recall == pytest.approx(
        float(MulticlassRecall(4, average=None)(logits, targets)[:3].mean())
    )
    metrics = result.metrics()
    bees = (logits.argmax(1) == 1) & (targets == 1)
    assert metrics["val/recall/bee"] == pytest.approx(float(bees.sum() / (targets == 1).sum()))
    assert not any(name.startswith("val/recall/zebra") for name in metrics)
    many = ClassificationMeter(20)
    many.update(torch.zeros(60), torch.randn(60, 20), targets)
    assert set(many.compute().metrics()) == {"val/loss", "val/top1", "val/top5", "val/macro_f1"}


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12 dark and 4 bright images."""
    root = tmp_path_factory.mktemp("photos")
    for name, count, grey in (("bright", 4, 200), ("dark", 12, 40)):
        (root / name).mkdir()
        for number in range(count):
            Image.new("RGB", (16, 16), (grey, grey, 8 * number)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("remedy", ["train.class_weights=balanced", "train.sampler=balanced"])
def test_a_run_with_a_remedy_trains_and_resumes(
    imbalanced: Path, tmp_path: Path, remedy: str
) -> None:
    folder = run_command(
        "train",
        [
            *("model=simplenet_cifar_310k", "data=folder", f"data.root={imbalanced}"),
            *("data.val_split=0.25", "data.image_size=16", "data.num_workers=0"),
            *("train.batch_size=4", "train.epochs=2", "train.stop_at_epoch=1"),
            *("train.warmup_epochs=0", "train.loggers=[csv]", f"train.out={tmp_path}", remedy),
        ],
    )
    resume_run(folder)
    content = checkpoint_of(folder)
    assert content["progress"]["epoch"] == 2
    recalls = {name for name in content["metrics"] if name.startswith("val/recall/")}
    assert recalls == {"val/recall/bright", "val/recall/dark"}
    if "class_weights" in remedy:
        counts = content["data"]["splits"]["train"]["classes"]
        expected = [sum(counts) / (2 * count) for count in counts]
        assert content["loss"]["weight"].tolist() == pytest.approx(expected)
