"""The wheel in an empty environment: the README's commands work from an empty folder."""

import json
import re
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("make ")
]
SMALL = "cct_2_3x2_32"
MODELS = {
    "efficientformer_l1": SMALL,
    "mobilenetv2_100": "mobilenetv2_035",
    "timm/fastvit_t8": "timm/mobilenetv3_small_050",
    "init_filters=16": "init_filters=8",
}
SHORT = {
    "train": "train.epochs=1 train.warmup_epochs=0 train.limit_train_batches=1"
    " train.limit_val_batches=1 train.batch_size=2 data.num_workers=0",
    "eval": "batch_size=8 data.num_workers=0",
    "benchmark": "profile.min_runs=2 profile.min_time=0 profile.max_time=0.2",
    "export": "",
}
SCENES = "data.train_images=2 data.val_images=2 data.image_size=64"

# Runs the commands on standard input in one process: each would import PyTorch again.
DRIVER = """
import json, sys
import zoo
from zoo.cli import execute
print(zoo.__file__, flush=True)
for line in sys.stdin:
    sys.argv = ["zoo", *json.loads(line)]
    print("code", execute(sys.argv[1:]), sys.argv[1:], flush=True)
"""
BLOCK = """
import sys
class Without:  # a finder that does not find some packages
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        blocked = name.partition(".")[0] in {blocked!r}
        return None if blocked else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run_all(installed, commands: list[list[str]], cwd: Path, before: str = "") -> str:
    """Run commands in one process of the installed Python; all must succeed."""
    done = subprocess.run(
        [str(installed.python), "-c", before + DRIVER],
        input="".join(json.dumps(words) + "\n" for words in commands),
        cwd=cwd, env=installed.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    codes = re.findall(r"^code (\d+) (.*)$", done.stdout, re.MULTILINE)
    failed = [words for code, words in codes if code != "0"]
    assert not failed, f"{failed}\n{done.stderr[-5000:]}"
    assert len(codes) == len(commands), done.stderr[-5000:]
    assert "site-packages" in done.stdout.splitlines()[0]
    return done.stdout + done.stderr


@pytest.fixture
def photos(empty) -> Path:
    """The folders that the README's commands name, in an empty folder."""
    noise = np.random.default_rng(0)
    for place in ("images/train/a", "images/train/b", "images/val/a", "images/val/b"):
        folder = empty / "path/to" / place
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    for split in ("train", "val"):
        folder = empty / "path/to/scenes" / split
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for number in range(2):
            pixels = noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            Image.fromarray(pixels[..., 0] % 3).save(folder / "masks" / f"{number}.png")
    return empty


def shortened(command: str) -> list[str]:
    """Return a command of the README with small models and a small budget."""
    dear = ("experiment=", "download=true", "photos_denoising", "photos_retrieval")
    if any(word in command for word in dear):  # only compose the settings
        return [*shlex.split(command, comments=True)[1:], "--cfg", "job"]
    for name, small in MODELS.items():
        command = command.replace(name, small)
    words = shlex.split(command.partition("zoo ")[2], comments=True)
    if words[0] in ("pick", "fit"):  # minutes; tests/picking and tests/fitting run them
        return [words[0], "--help"]
    words += SHORT[words[0]].split()
    if "digits_segmentation" in command or "digits_detection" in command:
        words += SCENES.split()
    elif "folder_segmentation" in command:
        words += ["data.image_size=64", "model.kwargs.init_filters=8"]
    elif "photos_superres" in command:
        words += ["data.train_images=2"]
    elif words[0] == "train" and "resume" not in command:
        words += ["data.image_size=32"]
    if words[0] == "benchmark":
        words += ["profile.image_sizes=[32]"]
    if "int8" in command:
        words += ["quantize.images=8"]
    return words


@pytest.mark.slow
def test_the_commands_of_the_readme_run_from_an_empty_folder(installed, photos):
    """They are typed one after the other; `<run>` is the first run."""
    first = [c for c in COMMANDS if c.startswith("zoo ") and "train.resume" not in c]
    train = next(c for c in first if c.startswith("zoo train"))
    half = ["train.epochs=2", "train.stop_at_epoch=1"]
    run_all(installed, [[*shortened(train), *half]], photos)
    (run,) = (photos / "runs").iterdir()
    rest = [shortened(c.replace("runs/<run>", f"runs/{run.name}")) for c in first if c != train]
    resume = next(c for c in COMMANDS if "train.resume" in c).replace("<run>", run.name)
    rest.append([*shlex.split(resume, comments=True)[1:], "train.limit_val_batches=1"])
    rest += [["list", "--long"], ["info", SMALL], ["count", SMALL]]
    rest += [["push", f"runs/{run.name}", "owner/name", "--dry-run", "repository"]]
    printed = run_all(installed, rest, photos)
    assert "Traceback" not in printed


@pytest.mark.slow
def test_several_processes_and_several_jobs(installed, empty):
    torchrun = next(c for c in COMMANDS if c.startswith("torchrun"))
    launcher = shlex.split(torchrun.partition(" zoo ")[0])
    short = [*shortened(torchrun), "train.accelerator=cpu"]
    command = [launcher[0], "--standalone", *launcher[1:], "zoo", *short]
    printed = installed(installed.bin / command[0], *command[1:], cwd=empty)
    assert "2 x cpu" in printed
    assert len(list((empty / "runs").iterdir())) == 1
    sweep = [*short, "--multirun", "train.lr=1e-3,2e-3", "train.out=sweep"]
    run_all(installed, [sweep], empty)
    assert len(list((empty / "sweep").iterdir())) == 2


@pytest.mark.slow
def test_without_extras_all_that_needs_none_works(installed, photos):
    """The core alone: packages of every extra cannot be imported."""
    blocked = ["onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "coremltools", "nncf"]
    blocked += ["torchao", "numba", "datasets", "webdataset", "segmentation_models_pytorch"]
    train = ["train", f"model={SMALL}", "data=folder", "data.root=path/to/images", "train.out=r"]
    train += [*SHORT["train"].split(), "data.image_size=32"]
    benchmark = ["benchmark", f"model={SMALL}", *SHORT["benchmark"].split(), "profile.out=b"]
    before = BLOCK.format(blocked=set(blocked))
    run_all(installed, [train], photos, before)
    (run,) = (photos / "r").iterdir()
    commands = [
        ["eval", f"weights={run}", "data.num_workers=0"],
        benchmark,
        ["report", "b"],
        ["export", f"weights={run}", "format=[pt2,torchscript]", "export.out=out"],
        ["predict", "out/torchscript", "path/to/images/val/a"],
        ["list", "mobile*"],
        ["info", SMALL],
        ["count", SMALL, "--fused"],
    ]
    run_all(installed, commands, photos, before)
    refused = [str(installed.python), "-c", before + DRIVER]
    done = subprocess.run(
        refused, input=json.dumps(["export", f"weights={run}", "format=onnx"]) + "\n", text=True,
        cwd=photos, env=installed.environment, capture_output=True, check=False,
    )  # fmt: skip
    assert "code 1" in done.stdout
    assert re.search(r"^error: .*pip install ", done.stderr, re.MULTILINE)


def test_the_command_lists_the_commands(installed, empty):
    printed = installed(installed.bin / "zoo", cwd=empty)
    for command in ("train", "eval", "benchmark", "export", "predict", "list", "count"):
        assert f"\n  {command}" in printed
        assert f"zoo {command} " in printed
    printed = installed(installed.bin / "zoo", "tran", cwd=empty, code=1)
    assert printed.startswith("error: unknown command 'tran'; did you mean 'train'?")
    assert installed(installed.python, "-m", "zoo", "--version", cwd=empty).startswith("zoo 0.")
    assert list(empty.iterdir()) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("zoo tra", "train"),
        ("zoo train model=mobilenetv2_03", "mobilenetv2_035"),
        ("zoo train data=digits_seg", "digits_segmentation"),
        ("zoo train train.epo", "train.epochs="),
        ("zoo eval fused=t", "true"),
        ("zoo list --lo", "--long"),
        ("zoo info spnas", "spnasnet_100"),
    ],
)
def test_bash_completes(line, expected, installed, empty):
    script = (
        'source <(zoo completion bash); COMP_LINE="$1"; COMP_POINT=${#1}; _zoo 2>/dev/null;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    printed = installed("bash", "-c", script, "bash", line, cwd=empty)
    assert expected in printed.splitlines()


def test_the_sdist_and_the_wheel_have_the_same_files(distributions):
    sdist, wheel = distributions
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if name.startswith("zoo/")}
    assert installed <= packed
    source = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "zoo").rglob("*")
        if file.suffix in (".py", ".yaml", ".css", ".html", ".js", ".typed")
        or file.name == "py.typed"
    }
    assert source <= installed
