"""Every setting is explained, by `--help` and by docs/configuration.md."""

import pytest

from zoo.cli import COMMANDS, execute
from zoo.command_line import help as settings_help
from zoo.command_line.keys import keys
from zoo.settings import RUNS


@pytest.mark.parametrize("command", RUNS)
def test_every_setting_has_a_comment(command):
    found = {row.key: row for _, rows in settings_help.groups(RUNS[command]) for row in rows}
    assert [key for key, row in found.items() if not row.comment] == []
    groups = {key for key in keys(command) if f"{key}." in "".join(f"{k} " for k in keys(command))}
    assert set(found) == set(keys(command)) - groups


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("command", RUNS)
def test_help_fits_the_terminal(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert execute([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"zoo {command} <key>=<value>" in printed
    # a default or an example longer than a line stays whole, so that it can be copied
    long = [line for line in printed.splitlines() if len(line) > int(columns)]
    assert all("=" in line.split()[0] or "zoo " in line for line in long), long


def test_help_has_comments_defaults_headings_and_choices(capsys):
    execute(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "train.batch_size=16 images per process" in printed
    assert "# training only, with timm's names and meanings data.train_interpolation" in printed
    assert "data=<name>: cifar10, cifar100, digits," in printed
    assert "Group train: how a model is trained" in printed


def test_the_page_has_every_key():
    page = settings_help.page()
    for command in RUNS:
        groups = {key.split(".")[0] for key in keys(command) if "." in key}
        for key in set(keys(command)) - groups:
            assert f"| `{key}` |" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    for words in ([command, "--help"], ["help", command]):
        assert execute(words) == 0
        assert "zoo" in capsys.readouterr().out
