"""Evaluation of checkpoints and published files."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import zoo
from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput, BadWeights, ZooError
from zoo.training import classification

from .conftest import checkpoint_of


def evaluated(*overrides: str) -> dict:
    """Return the report of `eval.py`."""
    return run_command("eval", list(overrides))


@pytest.fixture(scope="module")
def plain(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return evaluated(f"weights={whole_run}", f"out={tmp_path_factory.mktemp('plain')}")


@pytest.mark.parametrize("correct", [0, 7, 349, 360])
def test_confidence_interval_is_wilsons(correct: int) -> None:
    """The ends p of Wilson's interval solve |share - p| = z sqrt(p (1 - p) / n)."""
    n, z = 360, 1.959963984540054  # 97.5 % quantile of the normal distribution
    share = float(torch.tensor(correct) / n)
    low, high = classification.confidence_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    for p in (low, high):
        expected = z * math.sqrt(p * (1 - p) / n)
        assert abs(correct / n - p) == pytest.approx(expected, abs=1e-9)


def test_confidence_interval_without_images_is_everything() -> None:
    assert classification.confidence_interval(0.0, 0) == (0.0, 1.0)


def test_per_class_metrics() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    a, b, c = classification.per_class(confusion, ["a", "b", "c"])
    assert a == {"class": "a", "n": 4, "precision": 1.0, "recall": 0.75, "f1": 6 / 7}
    assert b == {"class": "b", "n": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8}
    assert c == {"class": "c", "n": 0, "precision": None, "recall": None, "f1": None}


def test_validation_of_fixed_logits() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [3, 2, 1], [1, 2, 3]])
    targets = torch.tensor([0, 2, 1, 2])
    batches = [(logits[:3], targets[:3]), (logits[3:], targets[3:])]
    result = classification.TASK.validate(
        lambda x: x[:, :, 0, 0],
        [(x[:, :, None, None], y) for x, y in batches],
        SimpleNamespace(num_classes=3),
        torch.device("cpu"),
    )
    assert result.images == 4
    assert result.top1 == 0.5
    assert result.top5 is None, "it would be 1 for at most five classes"
    assert "top-5" not in result.summary()
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)))
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_top_5_accuracy_of_many_classes() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(60, 12), torch.arange(60) % 12
    meter = classification.ClassificationMeter(12)
    for start in (0, 32):
        meter.update(torch.empty(0), logits[start : start + 32], targets[start : start + 32])
    result = meter.compute()
    ranks = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    assert result.top1 == float((ranks == 0).float().mean())
    assert result.top5 == float((ranks < 5).float().mean())


def test_a_run_folder_selects_its_model_and_data(plain: dict, whole_run: Path) -> None:
    assert plain["model"] == "mobilenetv2_035"
    assert plain["data"] == "digits"
    assert plain["preprocessing"] == checkpoint_of(whole_run, "best")["data"]["preprocessing"]
    assert plain["images"] == 360
    assert plain["weights"].endswith("best.ckpt")
    assert set(plain) >= {"top1", "top5", "loss", "classes", "confusion"}
    confusion = torch.tensor(plain["confusion"])
    assert confusion.diag().sum() / 360 == pytest.approx(plain["top1"]["value"])
    assert [row["n"] for row in plain["classes"]] == confusion.sum(1).tolist()


def test_the_files_match_the_report(whole_run: Path, tmp_path: Path) -> None:
    report = evaluated(f"weights={whole_run}", f"out={tmp_path / 'e'}")
    assert {file.name for file in (tmp_path / "e").iterdir()} == {
        "report.json",
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "images.csv",
        "report.html",
        "suspects.csv",
    }
    with (tmp_path / "e" / "images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    hits = sum(int(row["correct"]) for row in images)
    assert hits / len(images) == pytest.approx(report["top1"]["value"])
    assert 0 <= report["calibration"]["ece"] <= 1
    assert json.loads((tmp_path / "e" / "report.json").read_text()) == report
    with (tmp_path / "e" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == report["confusion"]
    with Image.open(tmp_path / "e" / "confusion.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_models_to_compare_with_are_checked(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"against=nowhere does not exist; give a run folder"):
        evaluated(f"weights={whole_run}", "against=nowhere")
    own = [f"weights={whole_run}", f"against={whole_run}", f"out={tmp_path}"]
    changes = evaluated(*own)["changes"]
    assert (changes["images"], changes["flipped"]) == (360, 0)


def test_fused_and_unfused_models_agree(plain: dict, whole_run: Path, tmp_path: Path) -> None:
    fused = evaluated(f"weights={whole_run}", "fused=true", f"out={tmp_path}")
    assert fused["fused"]
    assert fused["confusion"] == plain["confusion"]
    assert fused["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_a_published_file_with_the_key_names_of_timm(
    plain: dict, whole_run: Path, tmp_path: Path
) -> None:
    """The file has only weights, so the overrides give the model and the preprocessing."""
    theirs = zoo.create_model("timm/mobilenetv2_035", num_classes=10)
    content = checkpoint_of(whole_run, "best")["state_dict_ema"]
    ours = zoo.create_model("mobilenetv2_035", num_classes=10)
    ours.load_state_dict(content)
    renamed = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    assert all(renamed[k].shape == v.shape for k, v in theirs.state_dict().items())
    file = tmp_path / "published.pth"
    torch.save({"state_dict": renamed}, file)
    report = evaluated(
        f"weights={file}", "model=mobilenetv2_035", "data.image_size=32", "data.crop_pct=1",
        "data.interpolation=bicubic", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    assert report["confusion"] == plain["confusion"]


def test_two_classes_give_top_1_only_and_other_classes_are_an_error(
    tmp_path: Path, whole_run: Path
) -> None:
    write_images(tmp_path / "data", {"a": 3, "b": 4})
    model = zoo.create_model("mobilenetv2_035", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    overrides = [f"weights={tmp_path / 'w.pth'}", "model=mobilenetv2_035", "data=folder"]
    overrides += [f"data.root={tmp_path / 'data'}", "data.image_size=32", "data.num_workers=0"]
    report = evaluated(*overrides, f"out={tmp_path / 'out'}")
    assert [key for key in report if key.startswith("top")] == ["top1"]
    assert report["images"] == 7
    with pytest.raises(
        BadInput, match="none of the classes of the data: split val .*also has a, b"
    ):
        evaluated(f"weights={whole_run}", *overrides[2:], f"out={tmp_path / 'none'}")
    with pytest.raises(BadWeights, match="another number of classes than the data, which has 10"):
        evaluated(*overrides[:2], "data.image_size=32", f"out={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def write_images(root: Path, counts: dict[str, int]) -> None:
    """Write random images: 8 training images and `counts` validation images for each class."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count if split == "val" else 8):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=generator).byte().numpy()
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_files_that_are_not_weights_are_rejected(
    tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.pth")
    whole = (whole_run / "checkpoints" / "best.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.pth").write_text("hello")
    for name in ("bomb.pth", "half.ckpt", "text.pth", "absent.pth"):
        with pytest.raises(BadWeights, match=name) as error:
            evaluated(f"weights={name}", "out=out")
        assert "\n" not in str(error.value)
    assert not Path("exploded").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "weights is not set"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["weights=x", "model.pretrained=true"], "weights and model.pretrained both name weights"),
        (["weights=x", "out=pyproject.toml/x"], "is not a folder"),
    ],
)
def test_invalid_settings_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        evaluated(*overrides)


def test_a_checkpoint_of_another_model_is_rejected(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ZooError, match="is a checkpoint of mobilenetv2_035, not of efficientformer_l1"
    ):
        evaluated(f"weights={whole_run}", "model=efficientformer_l1", f"out={tmp_path / 'o'}")
    with pytest.raises(ZooError, match=r"device=warp is not available"):
        evaluated(f"weights={whole_run}", "device=warp", f"out={tmp_path / 'o'}")
    assert not list(tmp_path.iterdir())


def test_the_script_prints_and_writes_the_report(
    plain: dict, whole_run: Path, tmp_path: Path, script
) -> None:
    done = script("eval", f"weights={whole_run}", f"out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert f"top1 {plain['top1']['value']:.2%}" in done.stdout
    assert "precision" in done.stdout
    assert (tmp_path / "out" / "report.json").is_file()
