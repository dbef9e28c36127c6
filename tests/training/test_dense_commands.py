"""The README's commands for maps, as they stand there but for their length."""

import re
import shlex
from pathlib import Path

import pytest

from zoo.cli import run as run_command

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EMBEDDED = ("data=digits_segmentation", "data=photos_superres")
COMMANDS = [
    line
    for line in re.findall(r"^python train\.py .*$", README, re.MULTILINE)
    if any(data in line for data in EMBEDDED)
]
SHORT = ["train.epochs=1", "train.limit_train_batches=2", "train.limit_val_batches=1"]


def test_there_is_one_for_each_task():
    assert all(any(data in command for command in COMMANDS) for data in EMBEDDED)
    assert any("model=unet" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_trains_draws_and_can_be_evaluated(command, tmp_path, capsys):
    if "model=unet" in command:
        pytest.importorskip("segmentation_models_pytorch")
    words = shlex.split(command, comments=True)[2:]
    given = [*words, *SHORT, f"train.out={tmp_path}"]
    folder = run_command("train", given)
    assert (folder / "predictions.png").stat().st_size > 10_000
    given = [f"weights={folder}", f"out={tmp_path / 'out'}", "device=cpu", "batch_size=4"]
    given += ["data.val_images=4"] if "data=digits_segmentation" in words else []
    found = run_command("eval", given)
    printed = capsys.readouterr().out
    for name in ("mean_iou",) if "mean_iou" in found else ("psnr", "bicubic_psnr"):
        assert found[name] > 0
    assert ("mean IoU" in printed) == ("mean_iou" in found)
    assert ("bicubic" in printed) == ("bicubic_psnr" in found)
