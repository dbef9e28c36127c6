"""What training needs of a model: checkpointing, stochastic depth, layer decay, weight decay."""

import contextlib
import gc
import re

import pytest
import timm.optim
import torch
from support import KINDS, SMALLEST, fresh, inputs, quick, shaken, takes, trainable
from timm.layers import DropPath

import zoo
from zoo.profiling.memory import release_memory


def gradients(model, x):
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    output = model(x)
    output = output if isinstance(output, list) else [output]
    sum(out.square().mean() for out in output).backward()
    return output, {name: p.grad.clone() for name, p in trainable(model).items()}


@contextlib.contextmanager
def counting_saved():
    """Count the elements that forward passes keep for the backward pass.

    What is kept is detached: an operator's output that is kept as it is would keep its own graph
    alive, where no collector sees it.
    """
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.append(t.numel()), t.detach())[1], lambda t: t
    ):
        yield saved


@pytest.fixture
def graphs_go():
    """Graphs of checkpointed models hold each other: only the collector frees them.

    It need not search what was there before the test.
    """
    gc.freeze()
    yield
    release_memory()


@pytest.mark.usefixtures("graphs_go")
@pytest.mark.parametrize(
    ("name", "features_only"),
    [(name, False) for name in SMALLEST] + [(name, True) for name in KINDS],
)
def test_checkpointing_changes_memory_only(name, features_only):
    kwargs = {"features_only": features_only}
    kwargs |= {"drop_path_rate": 0.3} if takes(name, "drop_path_rate") else {}
    kwargs |= quick(name)
    model, x = fresh(name, torch.float64, **kwargs).train(), inputs(name, dtype=torch.float64)
    with counting_saved() as kept:
        want, plain = gradients(model, x)
    model.set_grad_checkpointing(True)
    with counting_saved() as saved:
        have, again = gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
    for key, grad in plain.items():
        torch.testing.assert_close(again[key], grad, rtol=1e-9, atol=1e-12)
    assert sum(saved) < 0.7 * sum(kept)  # the stem keeps all of its own
    model.set_grad_checkpointing(False)
    assert not any(getattr(module, "grad_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("name", [name for name in SMALLEST if takes(name, "drop_path_rate")])
def test_drop_path_grows_over_the_depth_and_drops_in_training_only(name):
    # The rates of a family that is cut after it is built end early.
    fewer = {} if "blocks" in quick(name) else quick(name)
    model = fresh(name, torch.float64, drop_path_rate=0.4, **fewer)
    x = inputs(name, dtype=torch.float64)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(0.4)
    assert rates == sorted(rates)
    plain = fresh(name, torch.float64, **fewer)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), plain(x)), "evaluation drops nothing"
        for module in model.modules():
            if isinstance(module, DropPath):
                module.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(x), model(x))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_is_in_a_layer_of_its_depth(name, coarse):
    model = shaken(name)
    matcher = model.group_matcher(coarse=coarse)
    patterns = [matcher["stem"], *(pattern for pattern, _ in matcher["blocks"]), r"^head\."]
    unmatched = [
        n for n, _ in model.named_parameters() if not any(re.match(p, n) for p in patterns)
    ]
    assert not unmatched


@pytest.mark.parametrize("name", SMALLEST)
def test_layer_decay_slows_the_early_layers(name):
    model = fresh(name)
    groups = timm.optim.param_groups_layer_decay(
        model,
        weight_decay=0.05,
        no_weight_decay_list=model.no_weight_decay(),
        layer_decay=0.5,
    )
    scale, decay = {}, {}
    names = {id(p): n for n, p in trainable(model).items()}
    for group in groups:
        for parameter in group["params"]:
            scale[names[id(parameter)]] = group["lr_scale"]
            decay[names[id(parameter)]] = group["weight_decay"]
    assert scale.keys() == set(names.values()), "each parameter once"
    heads = tuple(f"{head}." for head in model.classifier_names())
    assert {scale[name] for name in scale if name.startswith(heads)} == {1.0}
    depth = [scale[n] for n in scale if n.startswith(("stem.", "stages."))]
    assert min(depth) == scale[f"{model.first_conv_name()}.weight"]
    blocks = sum(len(stage.blocks) for stage in model.stages)
    assert len(set(scale.values())) >= blocks, "a layer for each block"
    assert max(depth) < 1.0
    for spared in model.no_weight_decay():
        assert decay[spared] == 0
    assert decay[f"{model.first_conv_name()}.weight"] == 0.05
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.9)
    model.train()(inputs(name)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", SMALLEST)
def test_names_spared_from_decay_exist(name):
    model = shaken(name)
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


WRONG = [
    {"drop_rate": 1.0},
    {"drop_rate": float("nan")},
    {"drop_path_rate": -0.1},
    {"drop_path_rate": "0.1"},
    {"in_chans": 0},
    {"in_chans": "3"},
    {"in_chans": True},
    {"num_classes": -1},
    {"num_classes": 2.0},
    {"global_pool": "AVG"},
    {"global_pool": 3},
    {"no_such_argument": 0},
    {"no_such_argument": None, "other": False},
]


def check_refused(name, wrong):
    with torch.device("meta"), pytest.raises(zoo.BadInput, match=list(wrong)[-1]) as caught:
        zoo.create_model(name, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_values_that_cannot_work_name_the_argument(wrong):
    check_refused("mobilenetv2_035", wrong)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_family_refuses_other_poolings_and_unknown_arguments(name):
    """All other arguments are checked before a family sees them."""
    for wrong in WRONG[-4:]:
        check_refused(name, wrong)
