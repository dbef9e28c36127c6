"""The documentation site: its pages, the reference of the public names, and the commands in it."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

import zoo
from zoo import cli
from zoo.command_line import composition, sweeps

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = [
    (page.name, line.split("  #")[0].strip())
    for page in sorted(DOCS.rglob("*.md"))
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("zoo ", "torchrun "))
]
HYDRA = tuple(cli.RUNS)


class _Loader(yaml.SafeLoader):
    """Reads names of Python objects as text."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: name)


def pages(nav):
    for entry in nav:
        (target,) = entry.values()
        yield from pages(target) if isinstance(target, list) else [target]


def test_every_page_is_in_the_navigation():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    assert sorted(pages(site["nav"])) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )
    assert site["strict"]


def test_every_public_name_is_documented():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.M)}
    packages = {"ops", "__version__"}
    assert {*zoo.__all__} - packages <= documented
    for name in {*zoo.__all__} - packages:
        assert (getattr(zoo, name).__doc__ or "").strip(), name


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_of_the_site_can_be_parsed(page, command):
    """Their settings exist and have valid values; files and run folders are not looked for."""
    words = re.findall(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+", command)
    words = [word.replace("'", "") if word.startswith("'") else word for word in words]
    if words[0] == "torchrun":
        words = words[words.index("zoo") :]
    name, arguments = words[1], [word.strip("'") for word in words[2:] if word != "-m"]
    if "-m" in words[2:]:  # as many runs as in a sweep; the plugins may not be installed
        left_out = ("hydra.", "hydra/", "train.lr=tag(log,interval(")
        arguments = [word for word in arguments if not word.startswith(left_out)]
        arguments.append("train.sweep=runs/all")
    if name == "train" and sweeps.is_sweep(arguments):
        for run in sweeps.combinations(arguments):
            composition.parse(name, run)
    elif name in HYDRA:
        composition.parse(name, arguments)
    else:
        assert name in set(cli.COMMANDS) - set(HYDRA)
        cli.parser(name).parse_args(arguments)


@pytest.mark.slow
def test_the_five_commands_for_photographs(tmp_path, monkeypatch, capsys):
    """As typed, but for a network that trains in seconds, and without weights from the internet."""
    monkeypatch.chdir(tmp_path)
    for name, color in (("dahlia", "red"), ("sunflower", "yellow")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (40 + number, 40), color).save(folder / f"{number}.png")
    Image.new("RGB", (50, 40), "red").save("new_photo.jpg")
    changed = {
        "model=mobilenetv2_100": "model=simplenet_cifar_310k data.image_size=32",
        "model.pretrained=true": "train.batch_size=4",
        "train.epochs=20": "train.epochs=1",
    }
    commands = [command for page, command in COMMANDS if page == "training.md"][:5]
    run = ""
    for number, command in enumerate(commands):
        for old, new in changed.items():
            command = command.replace(old, new)
        words = command.replace("runs/<run>", run).split()[1:]
        assert cli.execute(words) == 0, command
        printed = capsys.readouterr().out
        if number == 0:
            (run,) = map(str, Path("runs").iterdir())
        if words[0] == "predict":
            assert "dahlia" in printed
    assert {path.name for path in Path(run).rglob("*.onnx")} == {"model.onnx"}
