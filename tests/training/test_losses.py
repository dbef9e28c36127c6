"""Classification losses, distillation and mixing: comparison with explicit formulas."""

import pytest
import torch
from torch import nn

from zoo.errors import BadInput
from zoo.training.losses import Distillation, create_loss, list_losses, register_loss
from zoo.training.mixing import Mixing


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])


def soften(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return torch.eye(4)[targets] * (1 - smoothing) + smoothing / 4


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_accepts_classes_and_distributions(batch, smoothing: float) -> None:
    logits, targets = batch
    soft = soften(targets, smoothing)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    by_class = create_loss("cross-entropy", label_smoothing=smoothing)(logits, targets)
    torch.testing.assert_close(by_class, expected)
    torch.testing.assert_close(create_loss("cross-entropy")(logits, soft), expected)


def test_bce_accepts_classes_and_thresholded_distributions(batch) -> None:
    logits, targets = batch
    hot = torch.eye(4)[targets]
    p = logits.sigmoid()
    expected = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()
    torch.testing.assert_close(create_loss("bce")(logits, targets), expected)
    soft = soften(targets, 0.2)
    thresholded = create_loss("bce", target_threshold=0.2)(logits, soft)
    torch.testing.assert_close(thresholded, expected)


def test_errors_list_the_registered_losses_and_arguments() -> None:
    with pytest.raises(BadInput, match="did you mean 'cross-entropy'.*bce, bias, cross-entropy"):
        create_loss("cross-entropi")
    with pytest.raises(
        BadInput, match=r"unknown train\.loss_args 'gamma' of .*Choices:.*target_threshold"
    ):
        create_loss("bce", gamma=1)
    with pytest.raises(ValueError, match="registered twice"):
        register_loss("bce", nn.BCELoss)
    assert list_losses() == ["bce", "bias", "cross-entropy", "focal"]


class Teacher(nn.Module):
    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen = images
        return self.logits


def test_hard_distillation_supervises_the_second_head(batch) -> None:
    logits, targets = batch
    second, taught = torch.randn(6, 4), torch.randn(6, 4)
    teacher = Teacher(taught)
    loss = Distillation(create_loss("cross-entropy"), teacher, kind="hard", alpha=0.3).train()
    value = loss((logits, second), targets, torch.zeros(6, 3, 8, 8))
    first_part = nn.functional.cross_entropy(logits, targets)
    second_part = nn.functional.cross_entropy(second, taught.argmax(1))
    torch.testing.assert_close(value, 0.7 * first_part + 0.3 * second_part)
    assert not teacher.logits.requires_grad


def test_soft_distillation_of_one_head(batch) -> None:
    logits, targets = batch
    taught, tau = torch.randn(6, 4), 3.0
    loss = Distillation(
        create_loss("cross-entropy"),
        Teacher(taught),
        kind="soft",
        alpha=0.5,
        tau=tau,
        renormalize=lambda images: images + 1,
    )
    value = loss(logits, targets, torch.zeros(6, 3, 8, 8))
    p, log_q = (taught / tau).softmax(1), (logits / tau).log_softmax(1)
    divergence = (p * (p.log() - log_q)).sum(1).mean() * tau**2
    expected = 0.5 * nn.functional.cross_entropy(logits, targets) + 0.5 * divergence
    torch.testing.assert_close(value, expected)
    assert torch.equal(loss.teacher.seen, torch.ones(6, 3, 8, 8))


@pytest.mark.parametrize("n", [1, 4, 5])
def test_mixing_accepts_any_number_of_images(n: int) -> None:
    torch.manual_seed(0)
    mixing = Mixing(3, mixup=1.0, cutmix=1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.3)
    images, targets = torch.randn(n, 3, 8, 8), torch.arange(n) % 3
    before = images.clone()
    mixed, soft = mixing(images.clone(), targets)
    assert mixed.shape == before.shape
    torch.testing.assert_close(soft.sum(1), torch.ones(n))
    assert soft.min() >= 0.1 - 1e-6  # every class has its share of the smoothing
    if n % 2:
        assert torch.equal(mixed[-1], before[-1])
        torch.testing.assert_close(soft[-1], torch.eye(3)[targets[-1]] * 0.7 + 0.1)
    if n > 1:
        assert not torch.equal(mixed, before)
    mixing.disable()
    plain, soft = mixing(before.clone(), targets)
    assert torch.equal(plain, before)
    torch.testing.assert_close(soft, torch.eye(3)[targets] * 0.7 + 0.1)
