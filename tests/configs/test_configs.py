"""Every configuration file and every documented command composes; the keys are frozen."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from zoo.command_line.composition import CONFIGS, RUNS, compose
from zoo.command_line.sweeps import combinations, is_sweep
from zoo.errors import BadInput, UnknownModel

ROOT = Path(__file__).parents[2]
KEYS = Path(__file__).with_name("keys.txt")
GROUPS = ("data", "recipe", "experiment")
SCRIPTS = {f"{run}.py": run for run in RUNS}


def yamls() -> list[tuple[str, str]]:
    return [(group, f.stem) for group in GROUPS for f in sorted((CONFIGS / group).glob("*.yaml"))]


def runs_with(group: str, name: str) -> list[str]:
    """Return the commands that read a file of `group`."""
    if group == "experiment":
        opening = (CONFIGS / group / f"{name}.yaml").read_text()
        return [run for script, run in SCRIPTS.items() if script in opening]
    part = {"data": "data", "recipe": "train"}[group]
    return [run for run, schema in RUNS.items() if part in schema.__dataclass_fields__]


def test_there_are_configurations() -> None:
    found = set(yamls())
    assert {("data", "digits"), ("experiment", "efficientformer_l1_imagenet")} <= found
    assert ("recipe", "digits_segmentation") in found


def test_every_group_is_known() -> None:
    """A new group needs a place in `runs_with` and in CONTRIBUTING.md."""
    assert {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()} == set(GROUPS)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{group}`" in contributing for group in GROUPS)


@pytest.mark.parametrize("run", RUNS)
def test_every_entry_point_composes(run: str) -> None:
    cfg = compose(run)
    assert "hydra" not in cfg
    assert cfg.model.name == "efficientformer_l1"
    assert (CONFIGS / f"{run}.yaml").is_file()


@pytest.mark.parametrize(("group", "name"), yamls())
def test_every_file_composes(group: str, name: str) -> None:
    runs = runs_with(group, name)
    assert runs, f"configs/{group}/{name}.yaml names no script that it is for"
    for run in runs:
        missing = {"data.name=hfds/owner/set"} if name == "hfds" else set()
        choice = "data" if group == "recipe" else group  # a data set brings its recipe
        cfg = compose(run, [f"{choice}={name}", *missing])
        own = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
        assert isinstance(own, type(cfg))
        values = {"data": {"data": own}, "recipe": {"train": own}}.get(group, own)
        for part in set(values) - {"defaults"}:
            for key in values[part]:
                if not OmegaConf.is_missing(values[part], key):
                    assert cfg[part][key] == values[part][key], f"{part}.{key}"


def test_experiments_say_what_command_expected_source() -> None:
    for file in sorted((CONFIGS / "experiment").glob("*.yaml")):
        head = [line for line in file.read_text().splitlines() if line.startswith("#")]
        assert head[0] == "# @package _global_", file
        text = "\n".join(head)
        assert f"experiment={file.stem}" in text, file
        for word in ("Expected", "Source"):
            assert word in text, f"{file} lacks {word}"


def frozen() -> str:
    """Return every key of every command with its default."""
    lines = []
    for run, schema in RUNS.items():
        node = OmegaConf.structured(schema)
        for part in sorted(node):
            if OmegaConf.is_config(node[part]) and OmegaConf.is_dict(node[part]):
                lines += [f"{run}: {part}.{key} = {shown(node[part], key)}" for key in node[part]]
            else:
                lines.append(f"{run}: {part} = {shown(node, part)}")
    return "\n".join(lines) + "\n"


def shown(node, key: str) -> str:
    return "???" if OmegaConf.is_missing(node, key) else str(node[key])


def test_the_keys_are_the_frozen_ones() -> None:
    assert frozen() == KEYS.read_text(), (
        "keys or defaults of the configuration have changed; if you intended this, run"
        " `python tests/configs/test_configs.py` and add a line to CHANGELOG.md"
    )


def documented() -> list[tuple[str, str]]:
    """Return the commands in README, docs and the comments of configuration files, as scripts."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    files += sorted(CONFIGS.rglob("*.yaml"))
    found = []
    for file in files:
        if not file.exists():
            continue
        text = file.read_text().replace("\\\n", " ")
        text = re.sub(r"(?:python -m )?zoo (train|eval|benchmark|export)(?= \w)", r"\1.py", text)
        for match in re.finditer(
            r"(?m)^[\s$#>]*(?:torchrun [^\n]*?|python3? )?(\w+\.py)( \w.*)?$", text
        ):
            if match[1] in SCRIPTS:
                found.append((str(file.relative_to(ROOT)), f"{match[1]}{match[2] or ''}".strip()))
    return found


def arguments(line: str) -> list[str]:
    """Return the arguments of a command, with a word in place of each `<placeholder>`."""
    line = re.sub(r"<[^>]*>", "word", line).replace("...", "word")
    return shlex.split(line, comments=True)[1:]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "line"), documented())
def test_documented_command_lines_compose(file: str, line: str) -> None:
    script = line.split()[0]
    given = [word for word in arguments(line) if not word.startswith("-")]
    if given != ["word"]:  # `python eval.py ...` only mentions the command
        for words in combinations(given) if is_sweep(given) else [given]:
            compose(SCRIPTS[script], words)


def test_documented_lines_are_found() -> None:
    assert any(line.startswith("train.py experiment=") for _, line in documented())


@pytest.mark.parametrize(
    ("run", "override", "message"),
    [
        ("train", "train.learning_rate=1", "unknown key 'train.learning_rate'"),
        ("train", "train.batchsize=1", r"did you mean '(train\.)?batch_size'"),
        ("eval", "weight=x", "did you mean 'weights'"),
        ("train", "train.epochs=many", r"train\.epochs"),
        ("train", "train.epochs=1.5", r"train\.epochs"),
        ("train", "data=digitz", "digitz"),
        ("train", "experiment=nothing", "nothing"),
    ],
)
def test_mistakes_are_one_line(run: str, override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        compose(run, [override])
    assert "\n" not in str(error.value)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownModel, match="did you mean 'efficientformer_l1'"):
        compose("train", ["model=efficientformer_11"])


ERRORS = {
    "train": ("train.lr=-1", "error: train.lr=-1.0 must be greater than 0"),
    "eval": ("weights=absent.pth", "error: absent.pth does not exist"),
    "benchmark": (
        "models=[mobilenet_v2]",
        "error: unknown model 'mobilenet_v2'; did you mean",
    ),
    "export": ("format=onxx", "error: unknown format 'onxx'; did you mean 'onnx'"),
}


@pytest.mark.parametrize("command", ERRORS)
def test_an_error_is_one_line(command: str, tmp_path: Path, script, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    override, message = ERRORS[command]
    check_error(script(command, override), message, tmp_path)


@pytest.mark.slow
def test_a_process_prints_one_line_and_fails(tmp_path: Path) -> None:
    override, message = ERRORS["eval"]
    command = [sys.executable, str(ROOT / "eval.py"), override]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    check_error(done, message, tmp_path)


def check_error(done: subprocess.CompletedProcess, message: str, folder: Path) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    *phases, line = done.stderr.splitlines()
    assert line.startswith(message)
    assert all(re.match(r"\[\d\d:\d\d\] ", phase) for phase in phases)
    assert not list(folder.iterdir()), "nothing is written"


if __name__ == "__main__":
    KEYS.write_text(frozen())
    print(f"wrote {KEYS}")
