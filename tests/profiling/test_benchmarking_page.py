"""The commands of docs/benchmarking.md run, and the names in it exist."""

import re
import shlex
from pathlib import Path

import zoo
from zoo.cli import execute as main
from zoo.command_line.composition import run as run_command
from zoo.reports import records
from zoo.runtimes import NAMES
from zoo.settings import ProfileConfig

PAGE = Path(__file__).parents[2] / "docs" / "benchmarking.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
QUICK = ["profile.min_runs=6", "profile.min_time=0", "profile.max_time=1", "profile.threads=1"]


def test_commands_produce_the_documented_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []
    for command in COMMANDS:
        words = shlex.split(command)
        ran.append(" ".join(words[1:3]))
        if words[:2] == ["python", "benchmark.py"]:
            overrides = [word for word in words[2:] if "image_sizes" not in word]
            overrides = [word.replace("sustain=60", "sustain=0.05") for word in overrides]
            quick = [*QUICK, "profile.image_sizes=[32]", "profile.fused=true"]
            run_command("benchmark", [*overrides, *quick])
        elif words[:3] == ["python", "-m", "zoo"]:
            shorter = ["--images", "2", "--repeats", "1"] if words[3] == "score" else []
            assert main([*words[3:], *shorter]) == 0, command
        else:
            assert words == ["make", "results"]
    assert {"benchmark.py model=mobilenetv2_100", "-m zoo"} <= set(ran)
    small = tmp_path / "runs" / "small"
    assert sorted(file.suffix for file in small.iterdir()) == [".csv", ".html", ".jsonl", ".md"]
    assert len((small / "results.jsonl").read_text().splitlines()) == 2 * 2 + 2
    assert '"stages' in (tmp_path / "runs" / "layers" / "results.html").read_text()
    (row, *_) = records.load(tmp_path / "runs" / "production")
    assert {"paced", "pipeline", "sustained"} <= set(row)
    printed = capsys.readouterr().out
    assert "30 calls per second: latency" in printed
    assert "JPEG to outputs: " in printed
    assert "no difference" in printed
    assert "3.49 M" in printed, "parameters of MobileNetV2, fused"


def test_the_table_lists_all_settings_and_valid_runtimes():
    table = TEXT[TEXT.index("| key |") : TEXT.index("To count a model")]
    for key in ProfileConfig.__dataclass_fields__:
        assert key in table, key
    (runtimes,) = re.findall(r"^\| `profile.runtimes` \| (.*?);", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", runtimes)) < set(NAMES)


def test_documented_functions_are_public():
    for name in re.findall(r"`zoo\.(\w+)[(`]", TEXT):
        assert name in zoo.__all__, name
