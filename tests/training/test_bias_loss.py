"""The bias loss: reference values, formula, features of the model, and resumed runs."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import zoo
from zoo.training.losses import BiasLoss, create_loss

from .conftest import assert_same_run, checkpoint_of, resume_run, tiny_run

RECORD = json.loads(
    (Path(__file__).parents[1] / "reference" / "losses" / "bias_loss.json").read_text()
)
BIAS = ["train.loss=bias", "train.mixup=0", "train.cutmix=0"]


def draw(name, shape):
    """Return normal values seeded with the name, as in all reference records."""
    return np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)  # noqa: NPY002


def batch(k):
    """Return features, logits and targets of step `k`, as described in the record."""
    features = draw(f"features{k}", (6, 8, 5, 5))
    scales = 0.5 + abs(draw(f"scale{k}", (6,)))
    logits = torch.from_numpy(draw(f"logits{k}", (6, 11))).requires_grad_()
    targets = torch.tensor([(3 * i + k) % 11 for i in range(6)])
    return torch.from_numpy(features * scales[:, None, None, None]), logits, targets


@pytest.mark.parametrize(
    "case", RECORD["cases"], ids=lambda case: f"{case['mode']}-{case['alpha']}"
)
def test_losses_and_gradients_match_the_reference(case):
    loss = create_loss("bias", mode=case["mode"], alpha=case["alpha"], beta=case["beta"]).double()
    for k, expected in enumerate(case["steps"]):
        features, logits, targets = batch(k)
        value = loss(logits, targets, features)
        value.backward()
        assert value.item() == pytest.approx(expected["loss"], rel=1e-9)
        assert logits.grad.norm().item() == pytest.approx(expected["grad_logits_norm"], rel=1e-9)
        noise = np.random.RandomState(0).randn(logits.numel())  # noqa: NPY002
        probe = (logits.grad.flatten() @ torch.from_numpy(noise)).item() / math.sqrt(len(noise))
        assert probe == pytest.approx(expected["grad_logits_probe"], rel=1e-9)


def test_global_mode_uses_the_minimum_of_all_batches_so_far():
    loss = BiasLoss(alpha=0.5, beta=0.1).double()
    small = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]], dtype=torch.float64)  # variances 2 and 8
    large = torch.tensor([[-3.0, 3.0], [-4.0, 4.0]], dtype=torch.float64)  # variances 18 and 32
    torch.testing.assert_close(loss.weights(small), _weights([0, 1]))
    torch.testing.assert_close(loss.weights(large), _weights([16 / 14, 30 / 14]))
    local = BiasLoss(alpha=0.5, beta=0.1, mode="local").double()
    local.weights(small)
    torch.testing.assert_close(local.weights(large), _weights([0, 1]))


def _weights(u):
    return torch.tensor([math.exp(0.5 * value) - 0.1 for value in u], dtype=torch.float64)


@pytest.mark.parametrize("mode", ["global", "local"])
def test_equal_variances_do_not_divide_by_zero(mode):
    loss = BiasLoss(mode=mode)
    for features in (torch.randn(1, 4, 2, 2), torch.ones(3, 4, 2, 2)):
        logits = torch.randn(len(features), 5, requires_grad=True)
        targets = torch.zeros(len(features), dtype=torch.int64)
        value = loss(logits, targets, features)
        torch.testing.assert_close(value, 0.7 * F.cross_entropy(logits, targets))
        value.backward()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_without_weighting_it_equals_cross_entropy(smoothing, mixed):
    loss = create_loss("bias", alpha=0, beta=0, label_smoothing=smoothing)
    logits, features = torch.randn(6, 5), torch.randn(6, 4, 2, 2)
    targets = torch.randn(6, 5).softmax(1) if mixed else torch.arange(6) % 5
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, targets, features), expected)


def test_features_receive_no_gradient():
    features = torch.randn(3, 4, 2, 2, requires_grad=True)
    logits = torch.randn(3, 5, requires_grad=True)
    BiasLoss()(logits, torch.tensor([0, 1, 2]), features).backward()
    assert features.grad is None


def test_variances_of_half_precision_features_are_float32():
    features = 300 * torch.randn(4, 8, 3, 3)
    expected = BiasLoss().weights(features)
    assert BiasLoss().weights(features.half()).dtype == torch.float32
    torch.testing.assert_close(BiasLoss().weights(features.half()), expected, rtol=1e-2, atol=1e-2)


def test_watch_reads_the_last_feature_map_in_training_mode():
    model = zoo.create_model("mobilenetv2_035", num_classes=5).train()
    loss = BiasLoss()
    loss.watch(model)
    x, targets = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    logits = model(x)
    seen = loss._features
    assert seen.shape == (4, 1280, 2, 2)
    assert not seen.requires_grad
    twin = BiasLoss()
    torch.testing.assert_close(loss(logits, targets), twin(logits, targets, seen))
    with pytest.raises(zoo.BadInput, match=r"watch\(model\)"):
        loss(logits, targets)  # the features of a batch are used only once
    model.eval()(x)
    assert loss._features is None
    with pytest.raises(zoo.BadInput, match="of this package, and Linear is not one"):
        loss.watch(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mode": "both"}, "unknown train.loss_args.mode 'both'. Choices: global, local"),
        ({"alpha": "x"}, "train.loss_args.alpha='x' must be a finite number"),
        ({"beta": float("nan")}, "train.loss_args.beta=nan must be a finite number"),
        ({"gamma": 1}, "unknown train.loss_args 'gamma' of train.loss=bias"),
    ],
)
def test_invalid_arguments_are_rejected(args, message):
    with pytest.raises(zoo.BadInput, match=message):
        create_loss("bias", **args)


def test_a_resumed_run_keeps_the_minimum(tmp_path):
    whole = tiny_run(f"train.out={tmp_path / 'whole'}", *BIAS, "train.epochs=2")
    state = checkpoint_of(whole)["loss"]
    assert 0 < state["least"] < 1e5
    half = tiny_run(
        f"train.out={tmp_path / 'half'}", *BIAS, "train.epochs=2", "train.stop_at_epoch=1"
    )
    assert checkpoint_of(half)["loss"]["least"] >= state["least"]
    resume_run(half)
    assert_same_run(whole, half)


def test_other_losses_have_no_state(whole_run):
    assert "loss" not in checkpoint_of(whole_run)
