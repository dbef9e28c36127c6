"""Dense losses against formulas written out here, and what they refuse."""

import math

import pytest
import torch

from zoo.cli import compose
from zoo.errors import BadInput
from zoo.training import dense_losses  # noqa: F401  # makes them known
from zoo.training.losses import create_loss, list_losses

SEGMENTATION = ["cross-entropy", "cross-entropy+dice", "dice"]


def create(name, task="segmentation", **kwargs):
    return create_loss(name, task=task, **kwargs)


@pytest.fixture
def batch():
    """Logits 2 3 4 5 and numbers 2 4 5, of which a fifth belongs to no class."""
    torch.manual_seed(0)
    numbers = torch.randint(0, 3, (2, 4, 5))
    numbers[:, :, 0] = 255
    return torch.randn(2, 3, 4, 5, dtype=torch.float64), numbers


def pixels(logits, numbers):
    """Lists of probabilities and class of every pixel that has one."""
    shares = logits.softmax(dim=1).movedim(1, -1).flatten(0, 2)
    return [
        (row.tolist(), int(number))
        for row, number in zip(shares, numbers.flatten(), strict=True)
        if number != 255
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_a_mean_over_the_pixels_that_belong_to_a_class(batch, smoothing):
    found = create("cross-entropy", label_smoothing=smoothing)(*batch)
    losses = [
        -sum(
            ((1 - smoothing) * (k == number) + smoothing / 3) * math.log(share)
            for k, share in enumerate(shares)
        )
        for shares, number in pixels(*batch)
    ]
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("smooth", [0.0, 1.0, 5.0])
def test_dice(batch, smooth):
    logits, numbers = batch
    numbers = numbers.where(numbers != 2, 0)  # class 2 does not occur: it is left out of the mean
    rows = pixels(logits, numbers)
    coefficients = []
    for k in (0, 1):
        both = sum(shares[k] for shares, number in rows if number == k)
        areas = sum(shares[k] for shares, _ in rows) + sum(number == k for _, number in rows)
        coefficients.append((2 * both + smooth) / (areas + smooth))
    found = create("dice", smooth=smooth)(logits, numbers)
    assert found.item() == pytest.approx(1 - sum(coefficients) / 2, rel=1e-5)


def test_both_is_their_weighted_sum(batch):
    found = create("cross-entropy+dice", dice_weight=0.5, smooth=2.0, label_smoothing=0.1)(*batch)
    cross_entropy = create("cross-entropy", label_smoothing=0.1)(*batch)
    torch.testing.assert_close(found, cross_entropy + 0.5 * create("dice", smooth=2.0)(*batch))


@pytest.mark.parametrize("name", SEGMENTATION)
def test_perfect_predictions_cost_nothing_and_wrong_ones_much(name):
    numbers = torch.randint(0, 3, (2, 8, 8))
    right = 40 * torch.nn.functional.one_hot(numbers, 3).movedim(-1, 1).float()
    loss = create(name)
    assert loss(right, numbers) < 1e-4
    assert loss(right.roll(1, dims=1), numbers) > 0.9


@pytest.mark.parametrize("name", SEGMENTATION)
def test_pixels_of_no_class_get_no_gradient(batch, name):
    logits, numbers = batch
    logits.requires_grad_(True)
    create(name)(logits, numbers).backward()
    gradient = logits.grad.abs().sum(dim=1)
    assert (gradient[numbers == 255] == 0).all()
    assert (gradient[numbers != 255] > 0).all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_batch_without_any_class_costs_nothing(batch, name):
    logits, numbers = batch
    logits.requires_grad_(True)
    loss = create(name)(logits, torch.full_like(numbers, 255))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_charbonnier_and_l1():
    drawn, targets = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.2, 0.0]])
    expected = (math.sqrt(0.09 + 0.01) + 0.1) / 2
    found = create("charbonnier", "super-resolution", eps=0.1)(drawn, targets)
    assert found.item() == pytest.approx(expected)
    assert create("l1", "super-resolution")(drawn, targets).item() == pytest.approx(0.15)


def test_half_precision_is_summed_in_single():
    logits = torch.full((1, 2, 64, 64), 3e4, dtype=torch.float16)
    numbers = torch.zeros(1, 64, 64, dtype=torch.int64)
    for name in SEGMENTATION:
        loss = create(name)(logits, numbers)
        assert loss.dtype == torch.float32
        assert loss.isfinite()


@pytest.mark.parametrize(
    ("task", "name", "kwargs", "message"),
    [
        ("segmentation", "dise", {}, "unknown train.loss 'dise'; did you mean dice"),
        ("segmentation", "bce", {}, "There is: cross-entropy, cross-entropy.dice, dice"),
        ("classification", "dice", {}, "unknown train.loss 'dice'"),
        ("super-resolution", "cross-entropy", {}, "There is: charbonnier, l1"),
        ("segmentation", "dice", {"smoth": 1}, "train.loss_args.smoth is not an argument of dice"),
        ("segmentation", "dice", {"smooth": -1}, "train.loss_args.smooth=-1 must be 0 or more"),
        ("segmentation", "cross-entropy+dice", {"dice_weight": 0}, "dice_weight=0 must be above 0"),
        ("super-resolution", "charbonnier", {"eps": 0}, "train.loss_args.eps=0 must be above 0"),
        (
            "segmentation",
            "dice",
            {"label_smoothing": 0.1},
            "train.label_smoothing=0.1 has no effect with train.loss=dice",
        ),
    ],
)
def test_mistakes(task, name, kwargs, message):
    with pytest.raises(BadInput, match=message):
        create(name, task, **kwargs)


def test_names():
    assert list_losses("segmentation") == SEGMENTATION
    assert list_losses("super-resolution") == ["charbonnier", "l1"]
    assert compose("train", ["train.loss=cross-entropy+dice"]).train.loss == "cross-entropy+dice"
