"""The page of `zoo eval`: planted label errors and copies are found, and the files say so."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from zoo.data import sources
from zoo.data.create import create_datamodule
from zoo.diagnosis.report import Diagnosis, Reference
from zoo.settings import DataConfig
from zoo.training.evaluation import EvaluationTarget, evaluate_on

SHARE = 20  # one label of so many is wrong


@pytest.fixture(scope="module")
def planted() -> Any:
    """Return digits with wrong labels, which labels are wrong, and a model trained on them."""
    whole = sources.digits((8, 8), 1)
    generator = np.random.default_rng(0)
    wrong = generator.choice(len(whole), len(whole) // SHARE, replace=False)
    for index in wrong.tolist():
        whole.labels[index] = (whole.labels[index] + int(generator.integers(1, 10))) % 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "digits", lambda size, in_chans: whole)
        config = DataConfig(name="digits", image_size=8, in_chans=1, num_workers=0)
        data = create_datamodule(config, batch_size=64, mean=[0.0], std=[1.0], crop_pct=1.0)
        data.setup("fit")
        images, targets = zip(*data.eval_dataloader("train"), strict=True)
    fitted = LogisticRegression(max_iter=200, C=0.1)
    fitted.fit(torch.cat(images).flatten(1).numpy(), torch.cat(targets).numpy())
    weight, bias = (
        torch.from_numpy(values).float() for values in (fitted.coef_, fitted.intercept_)
    )
    return data, set(wrong.tolist()), lambda images: images.flatten(1) @ weight.T + bias


def evaluated(planted: Any, out: Path, **settings: Any) -> dict[str, Any]:
    data, _, forward = planted
    arguments = {"cut": None, "features": lambda x: x, "reference": None, "with_train": False}
    target = EvaluationTarget(
        forward,
        data,
        torch.device("cpu"),
        {"model": "linear"},
        "linear",
        diagnosis=Diagnosis(data, **(arguments | settings)),
    )
    return evaluate_on(target, out)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def whole_numbers(data: Any, rows: list[dict[str, str]]) -> list[int]:
    """Return the numbers of the images in the whole data set."""
    return [int(row["image"]) for row in rows]


@pytest.mark.parametrize("with_train", [False, True], ids=["validation", "all images"])
def test_planted_label_errors_are_found_early(
    planted: Any, with_train: bool, tmp_path: Path
) -> None:
    """The target: at least 80 % of them in the first 10 % of the list."""
    report = evaluated(planted, tmp_path, with_train=with_train)
    rows = rows_of(tmp_path / "suspects.csv")
    assert len(rows) == (1797 if with_train else 360)
    numbers = whole_numbers(planted[0], rows)
    wrong = planted[1] & set(numbers)
    first = set(numbers[: len(numbers) // 10])
    assert len(wrong & first) / len(wrong) >= 0.8
    assert report["suspects"] == sum(int(row["doubted"]) for row in rows)
    doubted = {n for n, row in zip(numbers, rows, strict=True) if row["doubted"] == "1"}
    assert len(wrong & doubted) / len(wrong) >= 0.7
    page = (tmp_path / "report.html").read_text()
    assert ("Give train_images=true" in page) == (not with_train)


def test_the_page_is_one_file_with_pictures_and_links_to_its_tables(
    planted: Any, tmp_path: Path
) -> None:
    data, _, forward = planted
    blurred = Reference("a <float> model", lambda images: forward(images).roll(1, dims=1))
    report = evaluated(planted, tmp_path, reference=blurred)
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;float&gt; model" in page
    assert "http" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") > 24
    assert page.count("<svg") == 2
    for name in ("images.csv", "classes.csv", "suspects.csv", "flips.csv"):
        assert f'href="{name}"' in page
        assert (tmp_path / name).is_file()
    changes = report["changes"]
    assert changes["flipped"] == len(rows_of(tmp_path / "flips.csv")) == 360
    assert changes["gained"] - changes["lost"] == pytest.approx(360 * changes["difference"])
    assert changes["low"] <= changes["difference"] <= changes["high"]
    assert report["copies_across_splits"] == page.count("<li>val ") > 0
    assert report["abstention"][0]["goal"] == 0.9
