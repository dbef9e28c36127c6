"""`train.adapt`: what checkpoints of adapters contain, how they load, and that they resume."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo import adapters, merging
from zoo.command_line.composition import run as run_command
from zoo.commands.resolve import read_weights
from zoo.errors import BadInput, BadWeights
from zoo.reparam import randomize_parameters

from .conftest import assert_same_run, checkpoint_of, resume_run

RUN = (
    "model=mobilenetv2_035",
    "data.image_size=32",
    "train.batch_size=4",
    "train.limit_train_batches=3",
    "train.limit_val_batches=1",
    "train.epochs=2",
    "train.ema_decay=0.5",
    "train.loggers=[csv]",
    "train.log_every=1",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model with five classes; the data has ten."""
    path = tmp_path_factory.mktemp("base") / "five.pth"
    model = zoo.create_model("mobilenetv2_035", num_classes=5)
    torch.save(randomize_parameters(model).state_dict(), path)
    return path


def adapted_run(base: Path, out: Path, *more: str) -> Path:
    return run_command("train", [*RUN, f"model.checkpoint_path={base}", f"train.out={out}", *more])


@pytest.fixture(scope="module")
def lora_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted_run(base, tmp_path_factory.mktemp("runs"), *LORA)


LORA = ("train.adapt=lora", "train.adapt_args.rank=2", "train.adapt_args.where=[stages.3.*]")


def test_a_checkpoint_has_only_what_differs_from_the_base(base: Path, lora_run: Path) -> None:
    content = checkpoint_of(lora_run)
    head = {"head.fc.weight", "head.fc.bias"}
    for entry in ("state_dict", "state_dict_ema"):
        others = content[entry].keys() - head
        assert others
        assert all(key.startswith("stages.3.") for key in others)
        assert {key.rpartition(".adapter.")[2] for key in others} == {"up", "down"}
    about = content["adapters"]
    assert (about["kind"], about["rank"], about["scale"]) == ("lora", 2, 1.0)
    assert about["base"]["source"] == str(base)

    plain = torch.load(base, weights_only=True)
    model = zoo.create_model("mobilenetv2_035", num_classes=10, checkpoint_path=lora_run)
    changed = {key for key, value in model.state_dict().items() if not _equal(value, plain[key])}
    averaged = checkpoint_of(lora_run, "best")["state_dict_ema"]
    layers = {f"{key.partition('.adapter.')[0]}.weight" for key in averaged.keys() - head}
    assert changed == layers | head
    for key in layers:
        up, down = (averaged[key.replace("weight", f"adapter.{part}")] for part in ("up", "down"))
        want = plain[key].double() + (up.double() @ down.double().flatten(1)).view_as(plain[key])
        assert torch.equal(model.state_dict()[key], want.float())


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize(
    "settings", [LORA, ("train.adapt=norms",), ("train.adapt=ssf", "train.adapt_args.std=0.1")]
)
def test_a_stopped_run_resumes_exactly(
    settings: tuple[str, ...], base: Path, lora_run: Path, tmp_path: Path
) -> None:
    whole = lora_run if settings is LORA else adapted_run(base, tmp_path / "whole", *settings)
    half = adapted_run(base, tmp_path / "half", *settings, "train.stop_at_epoch=1")
    resume_run(half)
    assert_same_run(whole, half)
    kept = checkpoint_of(half)["state_dict"]
    statistics = [key for key in kept if "running" in key or "num_batches" in key]
    assert bool(statistics) == (settings[0] == "train.adapt=norms")  # frozen norms stay in eval


def test_a_base_that_is_missing_or_another_is_named(
    base: Path, lora_run: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.pth"
    other = tmp_path / "other.pth"
    state = torch.load(base, weights_only=True)
    torch.save({**state, "head.fc.bias": state["head.fc.bias"] + 1}, other)
    run = shutil.copytree(lora_run, tmp_path / "run")
    shutil.copy(base, moved)
    hidden = base.rename(base.with_name("hidden"))
    try:
        missing = r"has only adapters, and their base is missing: .*five.pth does not exist"
        with pytest.raises(BadWeights, match=missing + "; give model.base="):
            zoo.create_model("mobilenetv2_035", num_classes=10, checkpoint_path=run)
        with pytest.raises(BadWeights, match=missing):
            resume_run(run, "train.epochs=3")
        with pytest.raises(
            BadWeights, match=r"adapters for a base with sha256 \w{12}, and .*other"
        ):
            zoo.create_model("mobilenetv2_035", num_classes=10, checkpoint_path=run, base=other)
        with pytest.raises(BadWeights, match="adapters for a base with sha256"):
            resume_run(run, "train.epochs=3", f"model.base={other}")
        resume_run(run, "train.epochs=3", f"model.base={moved}")
        assert checkpoint_of(run)["adapters"]["base"]["source"] == str(moved)
        given: Any = {"checkpoint_path": run, "base": moved}
        model = zoo.create_model("mobilenetv2_035", num_classes=10, **given)
        saved = read_weights(str(lora_run), base=str(moved))
        zoo.load_weights(model, saved.content)
        features = zoo.create_model("mobilenetv2_035", features_only=True, **given)
        assert features.state_dict().keys() < model.state_dict().keys()
    finally:
        hidden.rename(base)
    with pytest.raises(BadInput, match="has no effect without checkpoint_path"):
        zoo.create_model("mobilenetv2_035", base=base)
    with pytest.raises(BadWeights, match="is no checkpoint of adapters"):
        zoo.create_model("mobilenetv2_035", num_classes=5, checkpoint_path=base, base=base)


def test_adapters_for_an_adapted_run_need_both(base: Path, lora_run: Path, tmp_path: Path) -> None:
    second = adapted_run(lora_run, tmp_path, "train.adapt=ssf", "train.epochs=1")
    first = zoo.create_model("mobilenetv2_035", num_classes=10, checkpoint_path=lora_run)
    model = zoo.create_model("mobilenetv2_035", num_classes=10, checkpoint_path=second)
    for layer in ("stages.3.blocks.0.expand.conv", "stem.conv"):
        key = f"{layer}.weight"
        assert torch.equal(first.state_dict()[key], model.state_dict()[key])
    saved = checkpoint_of(second)
    assert saved["adapters"]["base"]["source"] == str(lora_run / "checkpoints" / "best.ckpt")
    kept = {key.rpartition(".")[0] for key in saved["state_dict"]}
    assert "head.fc" in kept
    assert merging.KEY in checkpoint_of(lora_run)
    assert adapters.adapters_of(model) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.adapt=lora"], "train.adapt needs the file of the base"),
        (["train.adapt=lorra"], "unknown train.adapt 'lorra'.*did you mean 'lora'"),
        (["train.adapt_args.rank=2"], "train.adapt_args=.* has no effect without train.adapt"),
        (["train.adapt=ssf", "train.adapt_args.rank=2"], "rank has no effect with train.adapt=ssf"),
        (["train.adapt=lora", "train.adapt_args.r=2"], "unknown train.adapt_args 'r'"),
        (["train.adapt=lora", "train.qat=true"], "train.qat=true is not supported"),
        (["train.freeze=[all-but-adapters]"], "all-but-adapters: the model has no adapters"),
        (["BASE", "train.adapt=lora", "train.adapt_args.rank=0"], "train.adapt=lora: rank=0"),
        (["BASE", "train.adapt=ssf", "train.adapt_args.where=[x]"], "'x' matches no layer"),
    ],
)
def test_settings_without_effect_are_refused(
    settings: list[str], message: str, base: Path, tmp_path: Path
) -> None:
    given: list[Any] = [f"model.checkpoint_path={base}" if s == "BASE" else s for s in settings]
    with pytest.raises(BadInput, match=message):
        run_command("train", [*RUN, f"train.out={tmp_path}", *given])
    assert not list(tmp_path.iterdir())
