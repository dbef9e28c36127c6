"""The generated files of the repository are up to date, and `python -m tools` writes them."""

import re
import shutil

import pytest

from tools import (
    capabilities,
    counts,
    figures,
    generated,
    key_lists,
    latencies,
    models_page,
    picture,
    project,
    proofs,
    readme_table,
)
from tools.__main__ import main
from tools.generated import WRITE
from zoo import registry

FILES = {
    counts.FILE: (counts, "FILE"),
    figures.FILE: (figures, "FILE"),
    models_page.FILE: (models_page, "FILE"),
    readme_table.FILE: (readme_table, "FILE"),
    latencies.RECORDS: (latencies, "RECORDS"),
    latencies.TABLE: (latencies, "TABLE"),
    capabilities.RECORDS: (capabilities, "RECORDS"),
    capabilities.PAGE: (capabilities, "PAGE"),
    key_lists.FOLDER: (key_lists, "FOLDER"),
    picture.FILE: (picture, "FILE"),
    generated.CONFIGURATION: (generated, "CONFIGURATION"),
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the files that the tools write, which they write instead."""
    for path, (module, name) in FILES.items():
        place = tmp_path / path.relative_to(project.ROOT)
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        monkeypatch.setattr(module, name, place)
    for module in (project, generated):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def test_every_generated_file_is_up_to_date():
    assert generated.problems() == []


def test_nothing_is_written_where_nothing_has_changed(checkout, capsys):
    assert main(["write"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["check"]) == 0


@pytest.mark.parametrize(
    "path", ["docs/models.md", "README.md", "results/README.md", "docs/capabilities.md"]
)
def test_a_changed_page_is_found_and_written(path, checkout, capsys):
    text = (checkout / path).read_text("utf-8")
    (checkout / path).write_text(text.replace("| wavemix", "| other"), "utf-8")
    assert main(["check"]) == 1
    assert capsys.readouterr().err == f"error: {path} is out of date: {WRITE}\n"
    assert main(["write"]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert (checkout / path).read_text("utf-8") == text


def test_a_picture_of_other_records_is_found_and_drawn(checkout, capsys):
    text = picture.FILE.read_text("utf-8")
    picture.FILE.write_text(text.replace("data ", "old "), "utf-8")
    assert generated.problems() == [f"docs/accuracy_latency.svg is out of date: {WRITE}"]
    generated.write()
    assert capsys.readouterr().out == "wrote docs/accuracy_latency.svg\n"
    assert generated.problems() == []


def test_numbers_in_the_readme_are_renewed(checkout):
    text = readme_table.FILE.read_text("utf-8")
    old = f"{len(project.finished())} models in {len(project.families())} families"
    assert text.count(old) >= 2
    readme_table.FILE.write_text(text.replace(old, "3 models in 2 families"), "utf-8")
    generated.write()
    assert readme_table.FILE.read_text("utf-8") == text


def test_what_the_readme_says_is_proven_is_counted():
    """Each number follows from the records of public code, the facts and the ledger."""
    text = readme_table.FILE.read_text("utf-8")
    opening = text[text.index("- **Compared") : text.index("- **No build step")]
    wrong = re.sub(
        r"(?<![\w.-])\d+(?= (records|models|of|published|families|have|more))", "9", opening
    )
    assert wrong.count("9 ") == 8
    assert proofs.renumbered(wrong) == opening
    compared = {name for name in project.finished() if proofs.compared(name).endswith(("d", "ds"))}
    assert f"records of {len(compared)} models" in opening
    assert f"the other {len(project.finished()) - len(compared)} models" in opening
    assert proofs.compared("mobilenetv2_035") == "another of the family"


def test_a_page_that_is_missing_is_written(checkout):
    text = (checkout / "docs/models.md").read_text("utf-8")
    (checkout / "docs/models.md").unlink()
    assert generated.problems() == [f"docs/models.md is out of date: {WRITE}"]
    generated.write()
    assert (checkout / "docs/models.md").read_text("utf-8") == text


def test_missing_counts_and_key_lists_are_written(checkout, capsys):
    counted = counts.read()
    counts.FILE.write_text(counts.render({k: v for k, v in counted.items() if k != "spnasnet_100"}))
    assert generated.problems() == [f"results/counts.json is out of date for spnasnet_100: {WRITE}"]
    file = key_lists.FOLDER / "spnasnet.txt"
    text = file.read_text("utf-8")
    file.unlink()
    generated.write()
    written = ["results/counts.json", "tests/contract/keys/spnasnet.txt"]
    assert capsys.readouterr().out == "".join(f"wrote {name}\n" for name in written)
    assert counts.read() == counted
    assert file.read_text("utf-8") == text


def test_key_lists_of_no_model_or_of_a_larger_one_are_found(checkout):
    (key_lists.FOLDER / "gone.txt").write_text("# gone\n")
    (key_lists.FOLDER / "spnasnet.txt").write_text("# another\n")
    assert generated.problems() == [
        f"tests/contract/keys/spnasnet.txt does not list the smallest model: {WRITE}",
        "tests/contract/keys/gone.txt belongs to no model: delete it",
    ]


def test_a_family_lists_its_names_anew(checkout, capsys):
    file = key_lists.FOLDER / "spnasnet.txt"
    text = file.read_text("utf-8")
    file.write_text(text.replace("stem.", "first."), "utf-8")
    assert main(["write"]) == 0
    assert file.read_text("utf-8") != text, "names are a promise: only `family` writes them"
    assert main(["family", "spnasnet"]) == 0
    assert capsys.readouterr().out == "wrote tests/contract/keys/spnasnet.txt\n"
    assert file.read_text("utf-8") == text


def test_a_family_is_measured_on_request(checkout, monkeypatch):
    measured = []
    monkeypatch.setattr(latencies, "measure", measured.append)
    monkeypatch.setattr(capabilities, "measure", measured.append)
    assert main(["family", "spnasnet"]) == 0
    assert measured == []
    assert main(["family", "wavemix", "--measure"]) == 0
    assert measured[0] == project.families()["wavemix"]
    assert len(measured[1]) == 3


def test_what_is_measured_is_written_even_after_an_interruption(checkout, monkeypatch, capsys):
    def measure(names):
        latencies.RECORDS.unlink()
        raise SystemExit(130)

    monkeypatch.setattr(latencies, "measure", measure)
    with pytest.raises(SystemExit):
        main(["latencies"])
    assert "not measured" in (checkout / "results/README.md").read_text("utf-8")
    assert main(["check"]) == 0
    assert f"not measured: {len(project.finished())} models" in capsys.readouterr().out


def test_untested_exports_are_named(checkout, capsys):
    capabilities.RECORDS.unlink()
    assert main(["write"]) == 0
    assert "Nothing is tested yet." in (checkout / "docs/capabilities.md").read_text("utf-8")
    assert main(["check"]) == 0
    assert "exports not tested: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "give the name of a family: make family NAME=<family>"),
        ("sandstone", "unknown family 'sandstone': zoo/facts/sandstone.yaml does not exist"),
    ],
)
def test_a_family_that_does_not_exist(name, message, checkout, capsys):
    assert main(["family", name]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_family_in_progress(checkout, monkeypatch, capsys):
    for name in registry.list_models(family="spnasnet"):
        monkeypatch.setitem(registry.get_spec(name).facts, "status", "in progress: no tests")
    assert main(["family", "spnasnet"]) == 1
    assert capsys.readouterr().err == (
        "error: family 'spnasnet' is in progress: no tests; remove `status` from "
        "zoo/facts/spnasnet.yaml first\n"
    )


def test_a_folder_that_is_not_a_checkout(checkout, capsys):
    shutil.rmtree(checkout / "results")
    assert main(["write"]) == 1
    assert "is not a checkout of the project: results/ does not exist" in capsys.readouterr().err
