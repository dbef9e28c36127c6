"""What `zoo eval` says about single images and about probabilities."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zoo.training import confidence


def sampled(count: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are too large by a factor, and classes drawn with the right shares."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 3, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * temperature, targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_logits_is_found(temperature: float) -> None:
    logits, targets = sampled(20_000, temperature)
    found = confidence.calibration(logits, targets)
    assert found["temperature"] == pytest.approx(temperature, rel=0.04)
    assert found["ece_with_temperature"] < 0.015
    assert (found["ece"] > 0.05) == (temperature != 1.0)


def test_the_calibration_error_is_its_definition() -> None:
    shares = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]], dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0])
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(0 - 0.7)) / 4
    assert confidence.calibration(shares.log(), targets)["ece"] == pytest.approx(expected)


def test_each_image_has_its_row(tmp_path: Path) -> None:
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.2, 0.3], [0.0, 0.0, 1.0]])
    targets = torch.tensor([0, 2, 2])
    found = confidence.Predictions(lambda images: shares[int(images[0]) :][: len(images)].log())
    batches = [(torch.tensor([0.0, 0.0]), targets[:2]), (torch.tensor([2.0]), targets[2:])]
    for images, _ in found.noted(batches):
        found(images)
    keys = ["a/0.png", "c/odd\udce9.png", "c/2.png"]
    data: Any = SimpleNamespace(
        class_names=["a", "b", "c"],
        streaming=False,
        source=lambda split: SimpleNamespace(key=keys.__getitem__),
    )
    confidence.write_images(tmp_path, found, data)
    path = tmp_path / "images.csv"
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == keys
    assert [(row["class"], row["predicted"], row["correct"]) for row in rows] == [
        ("a", "a", "1"),
        ("c", "a", "0"),
        ("c", "c", "1"),
    ]
    assert [float(row["confidence"]) for row in rows] == pytest.approx([0.7, 0.5, 1.0])
    assert [float(row["class_probability"]) for row in rows] == pytest.approx([0.7, 0.3, 1.0])
