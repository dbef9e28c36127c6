"""Dense losses: comparison with explicit formulas, and errors."""

import math

import pytest
import torch

from zoo.command_line.composition import compose
from zoo.errors import BadInput
from zoo.training import dense_losses  # noqa: F401  # registers the losses
from zoo.training.losses import create_loss, list_losses

SEGMENTATION = ["cross-entropy", "cross-entropy+dice", "dice"]


def create(name, task="segmentation", **kwargs):
    return create_loss(name, task=task, **kwargs)


@pytest.fixture
def batch():
    """Return logits 2 3 4 5 and class numbers 2 4 5, a fifth of which are ignored."""
    torch.manual_seed(0)
    numbers = torch.randint(0, 3, (2, 4, 5))
    numbers[:, :, 0] = 255
    return torch.randn(2, 3, 4, 5, dtype=torch.float64), numbers


def pixels(logits, numbers):
    """Return (probabilities, class number) for every pixel that is not ignored."""
    probabilities = logits.softmax(dim=1).movedim(1, -1).flatten(0, 2)
    return [
        (row.tolist(), int(number))
        for row, number in zip(probabilities, numbers.flatten(), strict=True)
        if number != 255
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_a_mean_over_the_pixels_that_are_not_ignored(batch, smoothing):
    loss = create("cross-entropy", label_smoothing=smoothing)(*batch)
    losses = [
        -sum(
            ((1 - smoothing) * (k == number) + smoothing / 3) * math.log(probability)
            for k, probability in enumerate(row)
        )
        for row, number in pixels(*batch)
    ]
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("smooth", [0.0, 1.0, 5.0])
def test_dice_is_a_mean_over_the_classes_that_occur(batch, smooth):
    logits, numbers = batch
    numbers = numbers.where(numbers != 2, 0)  # class 2 does not occur
    rows = pixels(logits, numbers)
    coefficients = []
    for k in (0, 1):
        intersection = sum(p[k] for p, number in rows if number == k)
        areas = sum(p[k] for p, _ in rows) + sum(number == k for _, number in rows)
        coefficients.append((2 * intersection + smooth) / (areas + smooth))
    loss = create("dice", smooth=smooth)(logits, numbers)
    assert loss.item() == pytest.approx(1 - sum(coefficients) / 2, rel=1e-5)


def test_cross_entropy_and_dice_is_a_weighted_sum(batch):
    loss = create("cross-entropy+dice", dice_weight=0.5, smooth=2.0, label_smoothing=0.1)(*batch)
    cross_entropy = create("cross-entropy", label_smoothing=0.1)(*batch)
    torch.testing.assert_close(loss, cross_entropy + 0.5 * create("dice", smooth=2.0)(*batch))


@pytest.mark.parametrize("name", SEGMENTATION)
def test_loss_is_near_zero_for_perfect_predictions_and_large_for_wrong_ones(name):
    numbers = torch.randint(0, 3, (2, 8, 8))
    right = 40 * torch.nn.functional.one_hot(numbers, 3).movedim(-1, 1).float()
    loss = create(name)
    assert loss(right, numbers) < 1e-4
    assert loss(right.roll(1, dims=1), numbers) > 0.9


@pytest.mark.parametrize("name", SEGMENTATION)
def test_ignored_pixels_receive_no_gradient(batch, name):
    logits, numbers = batch
    logits.requires_grad_(True)
    create(name)(logits, numbers).backward()
    gradient = logits.grad.abs().sum(dim=1)
    assert (gradient[numbers == 255] == 0).all()
    assert (gradient[numbers != 255] > 0).all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_loss_and_gradient_are_zero_if_all_pixels_are_ignored(batch, name):
    logits, numbers = batch
    logits.requires_grad_(True)
    loss = create(name)(logits, torch.full_like(numbers, 255))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_charbonnier_and_l1():
    predictions, targets = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.2, 0.0]])
    expected = (math.sqrt(0.09 + 0.01) + 0.1) / 2
    charbonnier = create("charbonnier", "super-resolution", eps=0.1)(predictions, targets)
    assert charbonnier.item() == pytest.approx(expected)
    l1 = create("l1", "super-resolution")
    assert l1(predictions, targets).item() == pytest.approx(0.15)
    assert l1(predictions.bfloat16(), targets).dtype == torch.float32


def test_half_precision_logits_give_a_float32_loss():
    logits = torch.full((1, 2, 64, 64), 3e4, dtype=torch.float16)
    numbers = torch.zeros(1, 64, 64, dtype=torch.int64)
    for name in SEGMENTATION:
        loss = create(name)(logits, numbers)
        assert loss.dtype == torch.float32
        assert loss.isfinite()


@pytest.mark.parametrize(
    ("task", "name", "kwargs", "message"),
    [
        ("segmentation", "dise", {}, "unknown train.loss 'dise'; did you mean 'dice'"),
        ("segmentation", "bce", {}, "Choices: cross-entropy, cross-entropy.dice, dice"),
        ("classification", "dice", {}, "unknown train.loss 'dice'"),
        ("super-resolution", "cross-entropy", {}, "Choices: charbonnier, l1"),
        (
            "segmentation",
            "dice",
            {"smoth": 1},
            "unknown train.loss_args 'smoth' of train.loss=dice; did you mean 'smooth'.*: smooth",
        ),
        ("super-resolution", "l1", {"reduction": "none"}, "train.loss=l1. Choices: none"),
        ("segmentation", "dice", {"smooth": -1}, "train.loss_args.smooth=-1 must be at least 0"),
        (
            "segmentation",
            "cross-entropy+dice",
            {"dice_weight": 0},
            "train.loss_args.dice_weight=0 must be greater than 0",
        ),
        ("super-resolution", "charbonnier", {"eps": 0}, "loss_args.eps=0 must be greater than 0"),
        (
            "segmentation",
            "dice",
            {"label_smoothing": 0.1},
            "train.label_smoothing=0.1 has no effect with train.loss=dice",
        ),
    ],
)
def test_invalid_losses_and_arguments_are_rejected(task, name, kwargs, message):
    with pytest.raises(BadInput, match=message):
        create(name, task, **kwargs)


def test_registered_losses():
    assert list_losses("segmentation") == SEGMENTATION
    assert list_losses("super-resolution") == ["charbonnier", "l1"]
    assert compose("train", ["train.loss=cross-entropy+dice"]).train.loss == "cross-entropy+dice"
