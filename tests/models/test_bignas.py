"""AttentiveNAS and AlphaNet: cut out of a supernet, with a shortcut in every block."""

import pytest
import torch
from published import public_state
from support import shaken
from torch import nn

import zoo
from zoo.keys import convert_keys, misfits, recognise
from zoo.models.bignas import MOST_BLOCKS

# The supernet has other shapes than the records; its names are tested here.
OWN_LAYOUTS = ("attentivenas_*", "alphanet_*")
NAME = "attentivenas_a0"
NAMES = zoo.list_models(family="bignas")
# Of each stage of the supernet: most channels, largest kernel, largest expansion, gate.
WIDTHS = (24, 32, 40, 72, 128, 216, 224)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
GATED = (2, 4, 5, 6)


def supernet():
    """Return random tensors under the names and in the shapes of the supernet."""
    shapes = {
        "first_conv.conv.conv.weight": (24, 3, 3, 3),
        "last_conv.final_expand_layer.conv.conv.weight": (1344, 224, 1, 1),
        "last_conv.feature_mix_layer.conv.conv.weight": (1984, 1344, 1, 1),
        "classifier.linear.linear.weight": (1000, 1984),
        "classifier.linear.linear.bias": (1000,),
    }
    norms = {"first_conv": 24, "last_conv.final_expand_layer": 1344}
    number, before = 0, 24
    for s, most in enumerate(MOST_BLOCKS):
        for _ in range(most):
            block, hidden = f"blocks.{number}.mobile_inverted_conv", before * EXPANSIONS[s]
            if s:
                shapes[f"{block}.inverted_bottleneck.conv.conv.weight"] = (hidden, before, 1, 1)
                norms[f"{block}.inverted_bottleneck"] = hidden
            shapes[f"{block}.depth_conv.conv.conv.weight"] = (hidden, 1, 5, 5)
            if s in GATED:
                inner = max(8, (hidden // 4 + 4) // 8 * 8)
                for name, shape in (("reduce", (inner, hidden)), ("expand", (hidden, inner))):
                    shapes[f"{block}.depth_conv.se.fc.{name}.weight"] = (*shape, 1, 1)
                    shapes[f"{block}.depth_conv.se.fc.{name}.bias"] = shape[:1]
            shapes[f"{block}.point_linear.conv.conv.weight"] = (WIDTHS[s], hidden, 1, 1)
            shapes[f"blocks.{number}.shortcut.conv.conv.weight"] = (WIDTHS[s], before, 1, 1)
            norms |= {f"{block}.depth_conv": hidden, f"{block}.point_linear": WIDTHS[s]}
            number, before = number + 1, WIDTHS[s]
    for name, width in norms.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.bn.{kind}"] = (width,)
    return {key: torch.rand(shape) + 0.5 for key, shape in shapes.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_fits_into_the_supernet(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    state = {key: value.to("meta") for key, value in supernet().items()}
    assert recognise(state, model.key_styles) is model.key_styles[1]
    assert misfits(convert_keys(state, model), model) == []


def test_leading_channels_and_middles_of_kernels_are_taken():
    state, model = supernet(), zoo.create_model(NAME)
    assert zoo.load_weights(model, {f"module.{key}": t for key, t in state.items()}) == []
    block = model.stages[1].blocks[0]  # the third block of the supernet: stage 0 has up to two
    kernel = state["blocks.2.mobile_inverted_conv.depth_conv.conv.conv.weight"]
    assert torch.equal(block.depthwise.conv.weight, kernel[:64, :, 1:4, 1:4])
    shortcut = state["blocks.2.shortcut.conv.conv.weight"]
    assert torch.equal(block.shortcut.conv.weight, shortcut[:24, :16])
    mix = state["last_conv.feature_mix_layer.conv.conv.weight"].flatten(1)
    assert torch.equal(model.head.hidden[0].weight, mix[:1792, :1296])


def test_a_network_that_was_cut_out_by_the_authors_is_read_too():
    state, model = public_state(NAME), zoo.create_model(NAME)
    assert zoo.load_weights(model, state) == []
    assert torch.equal(
        model.stages[1].blocks[0].shortcut.conv.weight, state["blocks.1.shortcut.conv.weight"]
    )


def test_shortcuts_convolve_only_where_the_width_changes():
    convolves = [
        isinstance(block.shortcut.conv, nn.Conv2d)
        for stage in shaken(NAME).stages
        for block in stage.blocks
    ]
    assert convolves == [False] + [True, False, False] * 5 + [True]
    assert all(block.residual for stage in shaken(NAME).stages for block in stage.blocks)
