"""The command that an evaluation prints exports the same function, with the same preprocessing."""

from zoo.commands import eval as command
from zoo.commands.resolve import SavedWeights
from zoo.settings import EvalRun, ModelConfig


def test_the_next_command_keeps_what_the_user_set(tmp_path):
    file = tmp_path / "w.pth"
    saved = SavedWeights(str(file), file, {"a": 1})
    explicit = {
        "model.name": "mobilenetv2_100", "model.num_classes": 7, "data.name": "folder",
        "data.mean": [0.5, 0.5, 0.5], "data.crop_pct": 1.0, "batch_size": 4,
    }  # fmt: skip
    settings = EvalRun(model=ModelConfig(name="mobilenetv2_100"))
    (line,) = command._next_commands(settings, saved, "mobilenetv2_100", explicit)
    words = line.partition("export ")[2]
    assert "model=mobilenetv2_100 model.num_classes=7" in words
    assert f"weights={file}" in words.replace("'", "")
    assert "data.crop_pct=1.0" in words
    assert "data.mean=[0.5" in words.replace("'", "")
    assert "batch_size" not in words
    assert "data=folder" not in words
