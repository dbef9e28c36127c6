"""A run remembers its data: resuming on other data is refused, and evaluation uses its split."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.command_line.composition import run as run_command
from zoo.data import holdout
from zoo.errors import BadInput

from .conftest import checkpoint_of, resume_run

COLOURS = {"blue": (20, 30, 200), "green": (30, 200, 20), "red": (200, 30, 20)}


def write_images(folder: Path, name: str, count: int, first: int = 0) -> None:
    """Write noisy images of the colour `name` to `<folder>/<name>`."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        noise = np.random.default_rng(i).integers(-20, 20, (32, 32, 3))
        pixels = (np.array(COLOURS.get(name, (90, 90, 90))) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of the images and that of a run with one of two epochs."""
    home = tmp_path_factory.mktemp("run")
    for name in COLOURS:
        write_images(home / "images", name, 10)
    command = ["model=simplenet_cifar_310k", "data=folder", f"data.root={home / 'images'}"]
    command += ["data.val_split=0.3", "data.image_size=32", "data.num_workers=0"]
    command += ["train.batch_size=4", "train.epochs=2", "train.stop_at_epoch=1"]
    command += ["train.lr=1e-3", "train.loggers=[csv]", f"train.out={home / 'runs'}"]
    return home / "images", run_command("train", command)


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of both folders."""
    images, run = trained
    return (
        shutil.copytree(images, tmp_path / "images"),
        shutil.copytree(run, tmp_path / "run"),
    )


def test_a_run_writes_its_split_and_its_counts(trained: tuple[Path, Path]) -> None:
    images, run = trained
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths = {path.relative_to(images).as_posix() for path in images.rglob("*.png")}
    assert {row["image"] for row in rows} == paths
    held = [row["image"] for row in rows if row["split"] == "val"]
    assert all((holdout.position(key) < 0.3) for key in held)
    splits = checkpoint_of(run)["data"]["splits"]
    assert splits["val"]["images"] == len(held)
    assert sum(splits["train"]["classes"]) == 30 - len(held)
    log = (run / "train.log").read_text()
    assert "top-5" not in log
    assert f"folder: {30 - len(held)} + {len(held)} images, 10 a class" in log


def test_a_moved_folder_resumes(copied: tuple[Path, Path]) -> None:
    images, run = copied
    resume_run(run, f"data.root={images}")
    assert checkpoint_of(run)["progress"]["epoch"] == 2


def rename(images: Path) -> None:
    (images / "red").rename(images / "yellow")


def swap(images: Path) -> None:
    (images / "red").rename(images / "x")
    (images / "blue").rename(images / "red")
    (images / "x").rename(images / "blue")


def swap_two_files(images: Path) -> None:
    one, other = images / "red" / "0.png", images / "blue" / "0.png"
    one.rename(images / "x")
    other.rename(one)
    (images / "x").rename(other)


def add_class(images: Path) -> None:
    write_images(images, "grey", 10)


def remove_class(images: Path) -> None:
    shutil.rmtree(images / "green")


def add_images(images: Path) -> None:
    write_images(images, "red", 4, first=50)


def remove_images(images: Path) -> None:
    (images / "red" / "3.png").unlink()


CHANGES = [
    (rename, "class red is missing and class yellow is new"),
    (swap, "files of split .* have other contents"),
    (swap_two_files, "files of split .* have other contents"),
    (add_class, "class grey is new"),
    (remove_class, "class green is missing"),
    (add_images, r"split train has \d+ images of class red instead of"),
    (remove_images, r"split .* has \d+ images of class red instead of"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_resuming_on_other_data_raises(
    change: Callable[[Path], None], message: str, copied: tuple[Path, Path]
) -> None:
    images, run = copied
    change(images)
    expected = rf"the data is not that of the run of .*last\.ckpt: {message}.*data\.root, or start"
    with pytest.raises(BadInput, match=expected) as error:
        resume_run(run, f"data.root={images}")
    assert "\n" not in str(error.value)
    assert checkpoint_of(run)["progress"]["epoch"] == 1


def evaluated(run: Path, images: Path, *overrides: str) -> dict:
    command = [f"weights={run}", f"data.root={images}", *overrides]
    return run_command("eval", command)


def test_new_images_are_not_evaluated(copied: tuple[Path, Path], capsys) -> None:
    images, run = copied
    before = evaluated(run, images)
    write_images(images, "red", 30, first=50)
    (images / "blue" / "extra").mkdir()
    after = evaluated(run, images)
    assert after["confusion"] == before["confusion"]
    assert "30 images are new since training, left out: red/50.png, " in capsys.readouterr().out
    other = evaluated(run, images, "data.val_split=0.5")
    assert other["images"] > before["images"], "another share is another split"


def validation_folder(home: Path, names: list[str]) -> Path:
    for name in names:
        write_images(home / "val", name, 6, first=100)
    return home


@pytest.mark.parametrize("names", [["blue", "green", "red"], ["blue", "red"], ["grey", "red"]])
def test_classes_are_matched_by_name(
    names: list[str], trained: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    """As many images of each class are right as when the folder has the classes of training."""
    run = trained[1]
    overrides = ["data.val_split=null", f"out={tmp_path / 'out'}"]
    whole = evaluated(run, validation_folder(tmp_path / "w", list(COLOURS)), *overrides)
    part = evaluated(run, validation_folder(tmp_path / "p", names), *overrides)
    kept = [index for index, name in enumerate(COLOURS) if name in names]
    for index, row in enumerate(part["confusion"]):
        assert row == (whole["confusion"][index] if index in kept else [0, 0, 0])
    assert part["images"] == 6 * len(kept)
    assert [row["class"] for row in part["classes"]] == list(COLOURS)
    printed = capsys.readouterr().out
    assert ("left out the images of class grey" in printed) == ("grey" in names)
    assert ("split val has no images of" in printed) == (len(kept) < 3)


def test_an_artefact_matches_classes_by_name(
    trained: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    command = [f"weights={trained[1]}", "format=onnx", f"export.out={tmp_path / 'a'}"]
    artefact = run_command("export", command)[0].path
    folder = validation_folder(tmp_path / "d", ["red", "grey"])
    common = [f"data.root={folder}", "data.val_split=null", f"out={tmp_path / 'out'}"]
    report = run_command("eval", [f"artefact={artefact}", *common])
    assert report["images"] == 6
    assert [row["n"] for row in report["classes"]] == [0, 0, 6]
    manifest = json.loads((artefact.parent / "manifest.json").read_text())
    manifest["class_names"] = None
    (artefact.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"has 3 classes, but data\.name=folder has 2"):
        run_command("eval", [f"artefact={artefact}", *common])


def test_weights_without_names_are_matched_by_position(
    trained: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    run = trained[1]
    torch.save(checkpoint_of(run)["state_dict"], tmp_path / "plain.pth")
    folder = validation_folder(tmp_path / "d", ["a", "b", "c"])
    command = [f"weights={tmp_path / 'plain.pth'}", "model=simplenet_cifar_310k", "data=folder"]
    command += [f"data.root={folder}", "data.image_size=32", f"out={tmp_path / 'out'}"]
    assert run_command("eval", command)["images"] == 18
    assert "the weights have no class names" in capsys.readouterr().out
