"""The commands `list`, `info` and `count`: filters, order, tables that fit, errors."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml
from support import FINISHED

import zoo
from zoo import registry
from zoo.cli import execute as main
from zoo.reports import figures

COUNTS = json.loads((Path(__file__).parents[1] / "results" / "counts.json").read_text("utf-8"))


@pytest.fixture
def printed(capsys):
    def run(*words):
        code = main(list(words))
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out.splitlines()

    return run


def error_of(capsys, *words):
    assert main(list(words)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_shipped_figures_are_those_of_the_results():
    for name in FINISHED:
        assert figures.of(name).macs == COUNTS[name]["macs"]
        measured = set(figures.of(name).ms)
        assert measured in (set(), set(figures.runtimes())), name
    assert figures.of("timm/resnet18").latency() is None


def test_the_figures_are_in_the_package():
    project = Path(__file__).parents[1]
    text = (project / "pyproject.toml").read_text("utf-8")
    globs = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["zoo"]
    packaged = {path for glob in globs for path in (project / "zoo").glob(glob)}
    assert project / "zoo" / "facts" / figures.FILE in packaged
    for name in ("page.html", "page.css", "tables.js", "plot.js", "page.js"):
        assert project / "zoo" / "reports" / "page" / name in packaged


def test_the_long_list_has_a_heading_and_fits_80_columns(printed):
    lines = printed("list", "--long")
    table = lines[: -2 if "ms:" in lines[-2] else -1]
    assert all(len(line) <= 80 for line in table if not line.startswith("MACs:"))
    lines = printed("list", "--long", "emo*")  # long names leave no width for all columns
    heading = " ".join(" ".join(lines[:3]).split())
    for title in ("model", "params", "MACs", "top-1 %", "eager", "onnx-", "runtime"):
        assert title in heading
    row = next(line for line in lines if line.startswith("emo2_2m_k5_hybrid_512"))
    assert "2.64 G" in row, "the counted MACs, not the paper's for another size"


def test_accuracies_of_other_data_sets_are_named(printed):
    lines = printed("list", "--long", "cct_7_3x1_32", "mobilenetv2_100")
    assert "96.5 CIFAR-10" in next(line for line in lines if line.startswith("cct"))
    assert " 72.9 " in next(line for line in lines if line.startswith("mobilenetv2"))
    assert figures.other_top1("cct_2_3x2_32") == "89.2 CIFAR-10", "not its figure on CIFAR-100"
    assert figures.other_top1("mobilenetv2_100") == ""
    for name in zoo.list_models():
        assert "classes" not in figures.other_top1(name), "name the data set in zoo.reports.figures"


@pytest.mark.parametrize("runtime", [None, "eager", "onnxruntime"])
def test_limits_and_order(printed, runtime):
    words = ["--runtime", runtime] if runtime else []
    names = printed("list", "--max-ms", "50", "--min-top1", "75", "--sort", "ms", *words)
    times = [figures.of(name).latency(runtime) for name in names]
    assert times == sorted(times)
    assert len(names) > 3
    expected = {
        name
        for name in zoo.list_models()
        if (figures.imagenet_top1(name) or 0) >= 75
        and (figures.of(name).latency(runtime) or 99) <= 50
    }
    assert set(names) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("params", lambda name: zoo.model_info(name)["params"]),
        ("macs", lambda name: figures.of(name).macs or 1e18),
        ("top1", lambda name: -(figures.imagenet_top1(name) or -1e9)),
        ("name", lambda name: name),
    ],
)
def test_sorting(printed, key, value):
    names = printed("list", "--sort", key)
    assert sorted(names) == zoo.list_models()
    assert [value(name) for name in names] == sorted(map(value, names))


def test_a_limit_of_parameters_takes_a_unit(printed):
    for text, most in (("6M", 6e6), ("300k", 3e5), ("5000000", 5e6)):
        names = printed("list", "--max-params", text)
        assert names == [n for n in zoo.list_models() if zoo.model_info(n)["params"] <= most]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mobilenet"], "'mobilenet*' matches 7 models"),
        (["MobileNetV2_*"], "'mobilenetv2_*' matches 7 models"),
        (["formerv"], "`list` without arguments"),
        (["--family", "mobilenetv3"], "unknown family 'mobilenetv3'; did you mean 'mobilenetv2'?"),
        (["--task", "classify"], "unknown task 'classify'; did you mean 'classification'?"),
        (["--sort", "speed"], "unknown --sort 'speed'"),
        (["--runtime", "onnxrt"], "unknown --runtime 'onnxrt'; did you mean 'onnxruntime'?"),
        (["--max-ms", "fast"], "--max-ms='fast' is not a number"),
        (["--max-params", "6X"], "--max-params='6X' is not a number"),
        (["--min-top1", "nan"], "--min-top1='nan' is not a number"),
        (["--min-top1", "99"], "no model fits all of"),
    ],
)
def test_errors_of_list(words, message, capsys):
    assert message in error_of(capsys, "list", *words)


def test_timm_models_are_listed_on_request(printed):
    assert "timm/resnet18" in printed("list", "timm/resnet1*")
    assert printed("list", "timm/resnet18", "mobilenetv2_035") == [
        "mobilenetv2_035",
        "timm/resnet18",
    ]
    assert zoo.list_models("timm/resnet18", task="segmentation") == []
    assert not any(registry.is_timm(name) for name in zoo.list_models("*"))
    assert "timm/resnet18" in "".join(printed("list", "--long", "timm/resnet18"))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"onxx": True}, "unknown filter of list_models 'onxx'; did you mean 'onnx'?"),
        ({"family": "mobilenetv3"}, "did you mean 'mobilenetv2'?"),
        ({"task": "classify"}, "did you mean 'classification'?"),
    ],
)
def test_unknown_filters_of_list_models(filters, message):
    with pytest.raises(zoo.BadInput) as error:
        zoo.list_models(**filters)
    assert message in str(error.value)


def test_info_is_a_page_of_80_columns(printed):
    for name in [*zoo.list_models(smallest_of_family=True), "unet", "timm/resnet18"]:
        lines = printed("info", name)
        assert max(map(len, lines)) <= 80
        assert lines[0].startswith("model")
        assert lines[-1].split() == ["next", "zoo", "benchmark", f"model={name}"]
    text = " ".join(" ".join(printed("info", "mobilenetv2_100")).split())
    for part in (
        "https://arxiv.org/abs/1801.04381",
        "MACs 300.8 M, counted",
        f"onnxruntime {figures.of('mobilenetv2_100').latency('onnxruntime'):.2f} ms ±",
        "top-1 72.91 % (timm results-imagenet.csv, crop 0.875)",
        "ra_in1k: apache-2.0, pretrained=True",
    ):
        assert part in text


def test_info_as_yaml(printed):
    facts = yaml.safe_load("\n".join(printed("info", "mobilenetv2_100", "--yaml")))
    assert facts == zoo.model_info("mobilenetv2_100")


def test_count_takes_the_encoder_of_a_decoder(printed):
    lines = printed("count", "lraspp", "--encoder", "simplenet_cifar_310k", "--size", "32")
    assert lines[0] == "lraspp on simplenet_cifar_310k, unfused, one image of 32x32"
    assert [line.split()[0] for line in lines[4:6]] == ["encoder", "decoder"]
    assert lines[-1].endswith("benchmark model=lraspp model.encoder=simplenet_cifar_310k")


def test_count_prints_a_tree_with_one_heading(printed):
    lines = printed("count", "simplenet_cifar_310k", "--depth", "2", "--size", "16")
    assert lines[0] == "simplenet_cifar_310k, unfused, one image of 16x16"
    assert lines[1].split() == ["module", "params", "MACs", "FLOPs", "activations"]
    assert max(map(len, lines)) <= 80
    counts = zoo.count(zoo.create_model("simplenet_cifar_310k").eval(), (1, 3, 16, 16))
    rows = [line.split() for line in lines[3:-1]]
    expected = [
        [name.split(".")[-1] or "total", *(f"{row[key]:,}" for key in row)]
        for name, row in counts.by_module(2).items()
    ]
    assert rows == expected
    assert lines[4].startswith("  ")
    assert lines[5].startswith("    ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mobilenetv2_035", "--size", "32", "32", "32"], "takes one number, or height and width"),
        (["mobilenetv2_035", "--size", "0"], "from 1 to 1,000,000"),
        (["lightm_unet_3d", "--size", "32", "32"], "or depth, height and width"),
        (["mobilenetv2_035", "--depth", "-1"], "--depth=-1 is negative"),
        (["mobilenetv2_035", "--size", "99999999999999"], "from 1 to 1,000,000"),
        (["timm/nothing"], "unknown model 'timm/nothing'"),
        (["mobilenet_v2"], "did you mean 'mobilenetv2_"),
    ],
)
def test_errors_of_count(words, message, capsys):
    assert message in error_of(capsys, "count", *words)
