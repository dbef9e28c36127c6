"""Evaluation of checkpoints and of published files."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import run as run_command
from zoo.errors import BadInput, BadWeights, ZooError
from zoo.training import report
from zoo.training.validation import validate

from .conftest import checkpoint_of

ROOT = Path(__file__).parents[2]


def evaluated(*overrides: str) -> dict:
    given = list(overrides)
    return run_command("eval", given)


@pytest.fixture(scope="module")
def plain(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return evaluated(f"weights={whole_run}", f"out={tmp_path_factory.mktemp('plain')}")


def test_wilson_interval_is_where_the_score_test_turns() -> None:
    """Its ends p solve |share - p| = z sqrt(p (1 - p) / n)."""
    for share, n in ((0.97, 360), (0.5, 10), (0.0, 20), (1.0, 20)):
        low, high = report.wilson(share, n)
        assert 0 <= low <= share <= high <= 1
        for p in (low, high):
            assert abs(share - p) == pytest.approx(
                report.Z95 * math.sqrt(p * (1 - p) / n), abs=1e-9
            )


def test_per_class_numbers_by_hand() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    a, b, c = report.per_class(confusion, ["a", "b", "c"])
    assert a == {"class": "a", "n": 4, "precision": 1.0, "recall": 0.75, "f1": 6 / 7}
    assert b == {"class": "b", "n": 2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8}
    assert c == {"class": "c", "n": 0, "precision": None, "recall": None, "f1": None}


def test_validation_by_hand() -> None:
    logits = torch.tensor([[3.0, 2, 1], [1, 3, 2], [3, 2, 1], [1, 2, 3]])
    targets = torch.tensor([0, 2, 1, 2])
    batches = [(logits[:3], targets[:3]), (logits[3:], targets[3:])]
    found = validate(
        lambda x: x[:, :, 0, 0],
        [(x[:, :, None, None], y) for x, y in batches],
        3,
        torch.device("cpu"),
    )
    assert (found.images, found.k) == (4, 3)
    assert found.top1 == 0.5
    assert found.topk == 1.0
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)))
    assert found.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_a_run_folder_brings_model_and_data(plain: dict, whole_run: Path) -> None:
    assert plain["model"] == "mobilenetv2_035"
    assert plain["data"] == "digits"
    assert plain["preprocessing"] == checkpoint_of(whole_run, "best")["data"]["preprocessing"]
    assert plain["images"] == 360
    assert plain["weights"].endswith("best.ckpt")
    assert set(plain) >= {"top1", "top5", "loss", "classes", "confusion"}
    confusion = torch.tensor(plain["confusion"])
    assert confusion.diag().sum() / 360 == pytest.approx(plain["top1"]["value"])
    assert [row["n"] for row in plain["classes"]] == confusion.sum(1).tolist()


def test_the_files_hold_the_same(whole_run: Path, tmp_path: Path) -> None:
    found = evaluated(f"weights={whole_run}", f"out={tmp_path / 'e'}")
    assert {file.name for file in (tmp_path / "e").iterdir()} == {
        "report.json",
        "classes.csv",
        "confusion.csv",
        "confusion.png",
    }
    assert json.loads((tmp_path / "e" / "report.json").read_text()) == found
    with (tmp_path / "e" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == found["confusion"]
    with Image.open(tmp_path / "e" / "confusion.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_fused_and_unfused_agree(plain: dict, whole_run: Path, tmp_path: Path) -> None:
    fused = evaluated(f"weights={whole_run}", "fused=true", f"out={tmp_path}")
    assert fused["fused"]
    assert fused["confusion"] == plain["confusion"]
    assert fused["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_published_file_in_a_foreign_key_style(
    plain: dict, whole_run: Path, tmp_path: Path
) -> None:
    """The same weights under timm's names, with the model and the size given by hand."""
    theirs = zoo.create_model("timm/mobilenetv2_035", num_classes=10)
    content = checkpoint_of(whole_run, "best")["state_dict_ema"]
    ours = zoo.create_model("mobilenetv2_035", num_classes=10)
    ours.load_state_dict(content)
    renamed = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    assert all(renamed[k].shape == v.shape for k, v in theirs.state_dict().items())
    file = tmp_path / "published.pth"
    torch.save({"state_dict": renamed}, file)
    found = evaluated(
        f"weights={file}", "model=mobilenetv2_035", "data.image_size=32", "data.crop_pct=1",
        "data.interpolation=bicubic", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    assert found["confusion"] == plain["confusion"]


def test_small_number_of_classes_clips_k(tmp_path: Path, whole_run: Path) -> None:
    write_images(tmp_path / "data", {"a": 3, "b": 4})
    model = zoo.create_model("mobilenetv2_035", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    given = [f"weights={tmp_path / 'w.pth'}", "model=mobilenetv2_035", "data=folder"]
    given += [f"data.root={tmp_path / 'data'}", "data.image_size=32", "data.num_workers=0"]
    found = evaluated(*given, f"out={tmp_path / 'out'}")
    assert found["top2"]["value"] == 1.0
    assert found["images"] == 7
    with pytest.raises(BadInput, match=r"knows 10 classes, the data folder has 2"):
        evaluated(f"weights={whole_run}", *given[2:], f"out={tmp_path / 'none'}")
    with pytest.raises(BadWeights, match="another number of classes than the 10 of the data"):
        evaluated(*given[:2], "data.image_size=32", f"out={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def write_images(root: Path, counts: dict[str, int]) -> None:
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


def test_files_that_are_no_weights(
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
    ("given", "message"),
    [
        ([], "weights is not set"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["weights=x", "model.pretrained=true"], "weights and model.pretrained both name weights"),
        (["weights=x", "out=pyproject.toml/x"], "is not a folder"),
    ],
)
def test_bad_arguments(given: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        evaluated(*given)


def test_a_checkpoint_of_another_model(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="does not fit EfficientFormer: missing"):
        evaluated(f"weights={whole_run}", "model=efficientformer_l1", f"out={tmp_path / 'o'}")
    with pytest.raises(ZooError, match=r"device=warp cannot be used"):
        evaluated(f"weights={whole_run}", "device=warp", f"out={tmp_path / 'o'}")
    assert not list(tmp_path.iterdir())


def test_the_command_itself(plain: dict, whole_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "eval.py", f"weights={whole_run}", f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"top1 {plain['top1']['value']:.2%}" in done.stdout
    assert "precision" in done.stdout
    assert (tmp_path / "out" / "report.json").is_file()
