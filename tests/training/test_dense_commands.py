"""The README's commands for dense prediction, shortened to a few batches."""

import re
import shlex
from pathlib import Path

import pytest

from zoo.command_line.composition import run as run_command

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EMBEDDED = ("data=digits_segmentation", "data=photos_superres", "data=digits_detection")
COMMANDS = [
    line
    for line in re.findall(r"^zoo train .*$", README, re.MULTILINE)
    if any(data in line for data in EMBEDDED)
]
SHORT = ["train.epochs=1", "train.limit_train_batches=2", "train.limit_val_batches=1"]


def test_the_readme_has_a_command_for_each_task():
    assert all(any(data in command for command in COMMANDS) for data in EMBEDDED)
    assert any("model=unet" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_trains_and_its_run_can_be_evaluated(command, tmp_path, capsys):
    if "model=unet" in command:
        pytest.importorskip("segmentation_models_pytorch")
    words = shlex.split(command, comments=True)[2:]
    folder = run_command("train", [*words, *SHORT, f"train.out={tmp_path}"])
    assert (folder / "predictions.png").stat().st_size > 10_000
    overrides = [f"weights={folder}", f"out={tmp_path / 'out'}", "device=cpu", "batch_size=4"]
    overrides += ["data.val_images=4"] if "data=photos_superres" not in words else []
    report = run_command("eval", overrides)
    printed = capsys.readouterr().out
    if "map" in report:
        assert report["map"] >= 0
        assert "mAP50" in printed
        return
    for name in ("mean_iou",) if "mean_iou" in report else ("psnr", "bicubic_psnr"):
        assert report[name] > 0
    assert ("mean IoU" in printed) == ("mean_iou" in report)
    assert ("bicubic" in printed) == ("bicubic_psnr" in report)
