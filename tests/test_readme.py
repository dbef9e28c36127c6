"""README and docs: commands and Python code run, links lead to files, figures are up to date."""

import ast
import itertools
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from published import RECORDS, public_state
from support import FINISHED

import zoo
from tools import latencies, picture
from zoo.cli import COMMANDS as COMMAND_NAMES
from zoo.command_line.composition import run as run_command

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"
PAGES = [README, *sorted((README.parent / "docs").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
TEXT = TEXTS[README]
BLOCKS = [
    block
    for text in TEXTS.values()
    for block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
LINKS = [
    (page, link)
    for page, text in TEXTS.items()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
]
PYTHON = [code for language, code in BLOCKS if language in ("python", "py")]  # py: not run here
RUN = ("README.md", "quantization.md")  # pages whose Python code runs here, block by block
COMMANDS = [
    line.strip()
    for language, code in BLOCKS
    if language in ("bash", "sh", "")
    for line in code.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]


def test_it_opens_with_what_this_is_and_two_commands():
    assert TEXT.startswith("# ")
    assert "make demo" in TEXT
    assert "make test" in TEXT
    assert TEXT.index("make demo") < TEXT.index("zoo train")
    for script in ("train", "eval", "benchmark", "export"):
        assert any(command.startswith(f"zoo {script} ") for command in COMMANDS), script
        assert f"{script}.py`" in TEXT


def test_figures_of_the_opening_are_true():
    records = [json.loads(file.read_text(encoding="utf-8")) for file in RECORDS.glob("*.json")]
    models = {record["model"] for record in records}
    opening = " ".join(TEXT[: TEXT.index("## Start")].split())
    names = FINISHED
    families = {zoo.model_info(name)["family"] for name in names}
    assert f"{len(names)} models in {len(families)} families" in opening
    assert f"{len(records)} records of {len(models)} models" in opening
    assert f"one core of an {picture.machine(latencies.read())}" in opening


def test_the_opening_shows_the_picture():
    assert f"](docs/{picture.FILE.name})" in TEXT[: TEXT.index("## Start")]
    assert picture.FILE.stat().st_size < 200_000


def test_the_picture_shows_the_records():
    data = picture.digest(picture.points(latencies.read()))
    assert f"data {data}" in picture.FILE.read_text("utf-8"), "run `make generated`"


def test_names_in_the_picture_do_not_overlap():
    families = picture.points(latencies.read())
    (axes,) = picture.draw(families).axes
    assert sorted(label.get_text() for label in axes.texts) == list(families)
    boxes = [picture.box_of(label) for label in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_picture_is_made_of_the_fastest_records_at_the_published_size():
    def record(name, size, ms, cpu="A"):
        machine = {"cpu": cpu}
        return {"model": name, "input_size": [1, 3, size, size], "p50_ms": ms, "machine": machine}

    found = picture.points(
        [
            record("mobilenetv2_100", 224, 9.0),
            record("mobilenetv2_100", 224, 7.0),
            record("mobilenetv2_100", 160, 3.0),
            record("ese_vovnet19b_dw", 224, 30.0),  # its best accuracy is one at 288 x 288
            record("cct_2_3x2_32", 32, 1.0),  # ten classes
            record("mobilenetv2_100", 224, 1.0, cpu="B"),  # a machine with fewer records
        ]
    )
    assert found == {
        "mobilenetv2": [picture.Point(7.0, 72.91)],
        "vovnet": [picture.Point(30.0, 76.828)],
    }


@pytest.mark.parametrize("code", PYTHON)
def test_python_uses_public_names_and_known_models(code):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "zoo"
        ):
            assert node.attr in zoo.__all__, f"zoo.{node.attr}"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "create_model"
            and isinstance(node.args[0], ast.Constant)
        ):
            name = node.args[0].value.removeprefix("zoo_")  # timm's name of ours
            assert zoo.registry.is_model(name) or name.startswith(("timm/", "hf-hub:")), name


def test_every_extra_is_listed_by_what_it_is_for():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text("utf-8"))["project"]
    listed = re.findall(r"\| `pip install '\.\[(.*?)\]'` \|", TEXT)
    names = {name for row in listed for name in row.split(",")}
    assert names == set(project["optional-dependencies"]) - {"dev"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("python ", "zoo "))])
def test_commands_name_scripts_and_models_that_exist(command):
    words = shlex.split(command, comments=True)
    on_backbones = zoo.registry.ON_BACKBONES
    if words[0] == "zoo":
        assert words[1] in COMMAND_NAMES
    else:
        assert words[1] == "-m" or (README.parent / words[1]).is_file()
    for word in words[2:]:
        key, _, value = word.partition("=")
        if key == "model" and "*" not in value and not value.startswith(("timm/", "<")):
            for name in value.split(","):
                assert zoo.registry.is_model(name) or name in on_backbones, name


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page, link):
    assert (page.parent / link).exists(), link


@pytest.fixture
def at_a_user(tmp_path, monkeypatch):
    """A folder with the files of the pages: trained weights, and photographs of two classes."""
    import torch
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    torch.save(zoo.create_model("mobilenetv2_100", num_classes=2).state_dict(), "mobilenet.pth")
    torch.save({"model": public_state("efficientformer_l1")}, "efficientformer_l1_300d.pth")
    for number, place in enumerate(f"{part}/{it}" for part in ("train", "val") for it in "ab"):
        folder = tmp_path / "photos" / place
        folder.mkdir(parents=True)
        Image.new("RGB", (240, 240), (60 * number, 80, 120)).save(folder / "photo.png")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith("python export.py model=")]
)
@pytest.mark.usefixtures("at_a_user")
def test_exports_do_as_the_page_says(command, capsys):
    """As typed, but with few blocks and narrow images for the models that take long."""
    words = shlex.split(command.replace("[128,96]", "[16,12]"), comments=True)[2:]
    if "model=lightm_unet_2d" in words:
        words += ["+model.kwargs.blocks_down=[1,1]", "+model.kwargs.blocks_up=[1]"]
        words += ["+model.kwargs.init_filters=8"]
    if "model=efficientvmamba_tiny" in words:
        words += ["+model.kwargs.depths=[1,0,0,1]"]
    if "model=wavemix_sisr_144_4_l1" in words:
        words += ["+model.kwargs.depth=1"]
    (artefact,) = run_command("export", words)
    assert artefact.path.is_file()
    printed = capsys.readouterr().out
    assert re.search(r"\d+ nodes$", printed, re.MULTILINE)
    int8 = "quantize.int8=true" in words
    assert ("latency of 1, ms" if int8 else "latency of 1 image in onnxruntime") in printed


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in RUN], ids=RUN)
@pytest.mark.usefixtures("at_a_user")
def test_python_runs(page):
    import numpy as np

    images = np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32)
    names = {"images": images, "batches": [images]}
    for code in re.findall(r"^```python\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL):
        exec(compile(code, page.name, "exec"), names)
