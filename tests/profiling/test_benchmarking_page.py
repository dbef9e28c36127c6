"""docs/benchmarking.md: its commands run, in the order in which they stand there."""

import re
import shlex
from pathlib import Path

import zoo
from zoo.__main__ import main
from zoo.cli import run as run_command
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


def test_the_commands_do_as_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []
    for command in COMMANDS:
        words = shlex.split(command)
        ran.append(" ".join(words[1:3]))
        if words[:2] == ["python", "benchmark.py"]:
            asked = [word for word in words[2:] if "image_sizes" not in word]
            quick = [*QUICK, "profile.image_sizes=[32]", "profile.fused=true"]
            run_command("benchmark", [*asked, *quick])
        elif words[:3] == ["python", "-m", "zoo"]:
            assert main(words[3:]) == 0, command
        else:
            assert words == ["make", "results"]
    assert {"benchmark.py model=mobilenetv2_100", "-m zoo"} <= set(ran)
    small = tmp_path / "runs" / "small"
    assert sorted(file.suffix for file in small.iterdir()) == [".csv", ".html", ".jsonl", ".md"]
    assert len((small / "results.jsonl").read_text().splitlines()) == 2 * 2 + 2
    assert '"stages' in (tmp_path / "runs" / "layers" / "results.html").read_text()
    printed = capsys.readouterr().out
    assert "no difference" in printed
    assert "3.49 M" in printed, "parameters of MobileNetV2, fused"


def test_it_names_every_key_and_runtimes_that_exist():
    table = TEXT[TEXT.index("| key |") : TEXT.index("Counts alone")]
    for key in ProfileConfig.__dataclass_fields__:
        assert key in table, key
    (runtimes,) = re.findall(r"^\| `profile.runtimes` \| (.*?);", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", runtimes)) < set(NAMES)


def test_functions_it_names_are_public():
    for name in re.findall(r"`zoo\.(\w+)[(`]", TEXT):
        assert name in zoo.__all__, name
