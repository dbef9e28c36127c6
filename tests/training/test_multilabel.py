"""Multi-label: metrics, and the way from a table of labels to predictions of an artefact."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from zoo.command_line.composition import run as run_command
from zoo.deploy.predict import Predictor
from zoo.deploy.predict_files import predict
from zoo.errors import BadInput
from zoo.training import losses
from zoo.training.multilabel import TASK

COLOURS = {"red": 0, "green": 1, "blue": 2}


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator)
    targets = (torch.rand(60, 4, generator=generator) < 0.3).long()
    targets[:, 3] = 0
    data = SimpleNamespace(class_names=list("abcd"), num_classes=4)
    meter = TASK.meter(data)
    for part in (slice(0, 25), slice(25, 60)):
        meter.update(torch.empty(0), logits[part], targets[part])
    result = meter.compute()
    own = [average_precision_score(targets[:, k], logits[:, k]) for k in range(3)]
    found = [row["average_precision"] for row in result.classes]
    assert found == [*map(pytest.approx, own), None]
    assert result.map == pytest.approx(np.mean(own))
    assert [row["n"] for row in result.classes] == targets.sum(0).tolist()
    assert result.images == 60
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    assert result.loss == pytest.approx(float(expected))
    hits = ((logits[:, 0] > 0) & (targets[:, 0] == 1)).sum()
    assert result.classes[0]["recall"] == pytest.approx(float(hits / targets[:, 0].sum()))
    assert "val/average_precision/a" in result.metrics()
    assert "val/average_precision/d" not in result.metrics()


def test_a_single_label_is_enough() -> None:
    meter = TASK.meter(SimpleNamespace(class_names=["only"], num_classes=1))
    meter.update(
        torch.empty(0), torch.tensor([[2.0], [-1.0], [1.0]]), torch.tensor([[1], [0], [0]])
    )
    result = meter.compute()
    assert (result.map, result.images) == (1.0, 3)
    assert result.classes[0]["precision"] == 0.5


def test_the_loss_weighs_and_smooths_labels() -> None:
    loss = losses.create_loss(
        "bce", task="multi-label", label_smoothing=0.2, class_weights=torch.tensor([1.0, 3.0])
    )
    logits, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[1, 0]])
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor([[0.9, 0.1]]), reduction="none"
    )
    assert float(loss(logits, targets)) == pytest.approx(
        float((terms * torch.tensor([1, 3])).mean())
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of images of mixed colours, and the run of a model trained on them."""
    folder = tmp_path_factory.mktemp("tags")
    generator = np.random.default_rng(0)
    lines = ["image,labels"]
    for number in range(24):
        shown = [name for bit, name in enumerate(COLOURS) if (number + 1) >> bit & 1]
        pixels = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        for name in shown:
            pixels[..., COLOURS[name]] += 150
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{';'.join(shown) or '-'}")
    (folder / "labels.csv").write_text("\n".join(lines))
    run = run_command(
        "train",
        [
            *("model=simplenet_cifar_310k", "data=multilabel", f"data.labels={folder}/labels.csv"),
            *("data.val_split=0.3", "data.image_size=16", "data.scale=[1,1]", "data.num_workers=0"),
            *(
                "data.color_jitter=0",
                "train.batch_size=8",
                "train.epochs=12",
                "train.loggers=[csv]",
            ),
            *(
                f"train.out={folder}/runs",
                "train.best=map",
                "train.progress=false",
                "train.lr=5e-3",
            ),
        ],
    )
    return folder, run


def test_a_trained_model_finds_the_labels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, run = trained
    report: dict[str, Any] = run_command("eval", [f"weights={run}", f"out={tmp_path}"])
    assert report["map"] > 0.9
    assert {row["class"] for row in report["classes"]} == set(COLOURS)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_an_artefact_says_that_it_predicts_labels(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, run = trained
    plain = run_command("eval", [f"weights={run}", f"out={tmp_path}/plain"])
    made = {}
    for name, settings in {"logits": [], "shares": ["export.postprocess=true"]}.items():
        command = [f"weights={run}", f"export.out={tmp_path / name}", *settings]
        (artefact,) = run_command("export", command)
        assert artefact.manifest["task"] == "multi-label"
        assert artefact.manifest["postprocessing"] == ("sigmoid" if settings else None)
        assert "each label" in artefact.manifest["outputs"][0]["meaning"]
        made[name] = Predictor(artefact.path)
    answers = [next(iter(predict(one, [folder / "4.png"])))["classes"] for one in made.values()]
    assert {row["name"] for row in answers[0]} == set(COLOURS)
    assert all(row["predicted"] == (row["probability"] >= 0.5) for row in answers[0])
    for a, b in zip(*answers, strict=True):
        assert a["name"] == b["name"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)
    again = run_command(
        "eval",
        [
            *(f"artefact={tmp_path}/shares", f"data.labels={folder}/labels.csv"),
            *("data.val_split=0.3", f"out={tmp_path}/again"),
        ],
    )
    assert again["map"] == pytest.approx(plain["map"])
    assert again["loss"] == pytest.approx(plain["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.mixup=0.2", r"train\.mixup=0\.2 is not supported for multi-label"),
        ("train.sampler=balanced", r"balanced.*(not supported|cannot be used)"),
        ("train.class_weights=balanced", r"class_weights=balanced .*cannot be used"),
        ("train.best=top1", r"train\.best"),
    ],
)
def test_settings_for_one_class_are_errors(
    setting: str, message: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ["model=simplenet_cifar_310k", "data=multilabel", "data.image_size=16"]
    command += [f"data.labels={trained[0]}/labels.csv", "data.val_split=0.3", setting]
    command.append("train.batch_size=4")
    with pytest.raises(BadInput, match=message):
        run_command("train", [*command, f"train.out={tmp_path}"])
