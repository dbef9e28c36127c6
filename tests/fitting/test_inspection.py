"""Copies of images, the split that keeps them together, and folders that cannot be used."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from zoo.commands import fit_steps
from zoo.data.holdout import position
from zoo.diagnosis import duplicates
from zoo.errors import BadInput
from zoo.fitting import inspection, split


def scene(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((120, 90), Image.Resampling.BICUBIC)


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


def test_copies_are_found_and_other_images_are_not() -> None:
    whole = scene(0)
    images = [scene(number) for number in range(40)]
    images += [
        whole.resize((64, 48)),
        compressed(whole),
        ImageEnhance.Brightness(whole).enhance(1.03),
    ]
    assert duplicates.groups([duplicates.look(image) for image in images]) == [[0, 40, 41, 42]]


def test_plain_images_are_copies_only_of_their_own_colour() -> None:
    colours = ["red", "blue", "red", "white", "black"]
    looks = [duplicates.look(Image.new("RGB", (20, 30), colour)) for colour in colours]
    assert duplicates.groups(looks) == [[0, 2]]


def test_more_images_than_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", 4)
    looks = [duplicates.look(scene(number)) for number in (*range(10), 2, 9, 2)]
    assert duplicates.groups(looks) == [[2, 10, 12], [9, 11]]


def test_without_copies_the_split_is_that_of_the_hash() -> None:
    keys = [f"a/{number}.jpg" for number in range(50)]
    halves = split.assign(keys, [0] * 50, [])
    expected = ["val" if position(key) < split.SHARE else "train" for key in keys]
    assert halves == expected
    assert set(halves) == {"train", "val"}


def test_copies_stay_together_and_each_half_has_each_class() -> None:
    keys = [f"{number}.jpg" for number in range(60)]
    labels = [number // 20 for number in range(60)]
    copies = [[0, 5, 9], [21, 39], [19, 20], list(range(40, 60))]
    halves = split.assign(keys, labels, copies)
    for group in copies[:3]:
        assert len({halves[index] for index in group}) == 1
    assert halves[19] == "train"  # in two classes
    for label in range(3):
        own = {half for half, number in zip(halves, labels, strict=True) if number == label}
        assert own == {"train", "val"}  # also of the class that is one group


def test_copies_across_a_split_that_exists_are_reported(tmp_path: Path) -> None:
    for part, numbers in (("train", (0, 1, 2)), ("val", (3, 4))):
        for offset, name in ((0, "a"), (10, "b")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in numbers:
                scene(offset + number).save(tmp_path / part / name / f"{number}.png")
    scene(1).resize((60, 45)).save(tmp_path / "val" / "a" / "again.png")
    found = inspection.inspect(str(tmp_path))
    assert found.halves is None
    assert found.about["copies_across_split"] == [["train/a/1.png", "val/a/again.png"]]
    assert "the accuracy is too high" in " ".join(inspection.lines(found.about))
    rare = {"class": "rare", "train": 3, "val": 0}
    about = {**found.about, "classes": [*found.about["classes"], rare]}
    assert "so never tested: class rare" in " ".join(inspection.lines(about))


def test_folders_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scene(0).save(tmp_path / "a" / "0.png")
    with pytest.raises(BadInput, match="a single class folder, a"):
        inspection.inspect(str(tmp_path))
    (tmp_path / "b").mkdir()
    for number in (0, 1):
        scene(number).save(tmp_path / "b" / f"{number}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="class a has fewer than two images that can be read"):
        inspection.inspect(str(tmp_path))


def test_the_reason_for_random_weights_is_one_short_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create(name: str, *, num_classes: int, pretrained: bool = False) -> None:
        if pretrained:
            raise BadInput(f"the weights of {name} cannot be fetched; give {'x' * 400}")

    monkeypatch.setattr(fit_steps, "create_model", create)
    assert fit_steps.first_weights("m", 3) == ("none", "the weights of m cannot be fetched")
