"""Experts Weights Averaging: the identities of its formulas, and checkpoints of the mean."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
import zoo.settings
from zoo.blocks.mlp import Mlp
from zoo.command_line.composition import run as run_command
from zoo.errors import BadInput, BadWeights
from zoo.training import experts
from zoo.training.experts import ExpertsMlp

from .conftest import assert_equal, assert_same_run, checkpoint_of, resume_run

RUN = (
    "model=cct_2_3x2_32",
    "data.image_size=32",
    "train.batch_size=4",
    "train.limit_train_batches=2",
    "train.limit_val_batches=1",
    "train.epochs=2",
    "train.ema_decay=0.5",
    "train.loggers=[csv]",
    "train.log_every=1",
)


def different(count: int) -> ExpertsMlp:
    torch.manual_seed(0)
    made = ExpertsMlp(Mlp(6, 8), count).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def stacked(layer: ExpertsMlp) -> torch.Tensor:
    return torch.stack([nn.utils.parameters_to_vector(e.parameters()) for e in layer.experts])


@pytest.mark.parametrize(("count", "share"), [(2, 0.1), (4, 0.3), (3, 2 / 3), (4, 0.0)])
def test_averaging_keeps_the_mean_and_shrinks_distances_by_its_formula(
    count: int, share: float
) -> None:
    layer = different(count)
    before = stacked(layer)
    layer.average(share)
    after = stacked(layer)
    assert (after.mean(0) - before.mean(0)).abs().max() < 1e-14
    want = (before - before.mean(0)) * (1 - share * count / (count - 1))
    assert (after - after.mean(0) - want).abs().max() < 1e-14
    layer = ExpertsMlp(Mlp(6, 8), count).double()
    equal = stacked(layer)
    layer.average(share)
    assert (stacked(layer) - equal).abs().max() < 1e-15


def test_each_token_goes_through_one_expert_and_equal_experts_are_one() -> None:
    layer = different(3).train()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    all_of_them = torch.stack([expert(x) for expert in layer.experts])
    same = (layer(x) - all_of_them).abs().amax(-1) < 1e-12
    assert same.sum(0).eq(1).all()
    assert sorted(same.flatten(1).sum(1).tolist()) == [3, 3, 4]
    equal = ExpertsMlp(Mlp(6, 8), 3).double().train()
    assert (equal(x) - equal.experts[0](x)).abs().max() < 1e-12
    merged = layer.eval().merged()
    assert torch.equal(merged(x), layer(x))
    assert type(merged) is Mlp


def test_a_step_costs_what_it_costs_without_experts() -> None:
    counts = []
    for number in (None, 4):
        model = zoo.create_model("cct_2_3x2_32", num_classes=10).train()
        if number:
            assert experts.install(model, number=number, every=1)
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 3, 32, 32)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


def test_checkpoints_have_the_mean_and_resume_with_the_experts(tmp_path: Path) -> None:
    words = ("train.experts.number=3", "train.experts.share=0.2")
    whole = run_command("train", [*RUN, *words, f"train.out={tmp_path / 'whole'}"])
    content = checkpoint_of(whole)
    plain = zoo.create_model("cct_2_3x2_32", num_classes=10, checkpoint_path=whole)
    for entry in ("state_dict", "state_dict_ema"):
        assert content[entry].keys() == plain.state_dict().keys()
        rest = content["unmerged"][entry]
        name = next(key for key in rest if ".experts.0." in key)
        copies = torch.stack([rest[name.replace("experts.0", f"experts.{i}")] for i in range(3)])
        assert torch.equal(content[entry][name.replace(".experts.0", "")], copies.mean(0))
        assert (copies[0] - copies[1]).abs().max() > 0
    half = ["train.stop_at_epoch=1", f"train.out={tmp_path / 'half'}"]
    folder = run_command("train", [*RUN, *words, *half])
    resume_run(folder)
    assert_same_run(whole, folder)


def test_one_expert_is_plain_training(tmp_path: Path) -> None:
    plain = run_command("train", [*RUN, f"train.out={tmp_path / 'plain'}"])
    one = run_command("train", [*RUN, "train.experts.number=1", f"train.out={tmp_path / 'one'}"])
    for key in ("state_dict", "state_dict_ema", "metrics"):
        assert_equal(checkpoint_of(one)[key], checkpoint_of(plain)[key])
    method = experts.ExpertsAveraging(zoo.settings.TrainConfig(experts={"number": 2}))
    with pytest.raises(BadWeights, match="unmerged, which has the experts, is missing"):
        method.check_resumed(checkpoint_of(plain), plain)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.experts.number=0"], "train.experts.number=0 must be a whole number"),
        (["train.experts.count=2"], "train.experts.count is unknown; its entries are number"),
        (["train.experts.share=0.9"], "train.experts.share=0.9 must be between 0 and 0.75"),
        (["train.experts.every=0.5"], "train.experts.every=0.5 must be a whole number"),
        (["train.experts.number=2", "train.qat=true"], "not supported with train.experts"),
        (["train.experts.number=2", "model=mobilenetv2_035"], "MobileNetV2 has no MLPs on tokens"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    given = [word for word in RUN if not (word[:6] == "model=" and "model=" in str(words))]
    with pytest.raises(BadInput, match=message):
        run_command("train", [*given, *words, f"train.out={tmp_path}"])
    assert not list(tmp_path.iterdir())
