"""EfficientVMamba: what its specification says beyond the contract."""

import pytest
import torch
from support import difference, images, shaken

import zoo
from zoo.blocks.selective import atrous, merge_atrous
from zoo.models.efficientvmamba import PatchMerging

# Published names that do not follow from the records: they count blocks through stages.
OWN_LAYOUTS = ("efficientvmamba_base",)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (2, 3)])
def test_atrous_sequences_visit_every_pixel_once(size):
    height, width = size
    x = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    sequences = atrous(x)
    assert sequences.shape == (1, 4, 1, ((height + 1) // 2) * ((width + 1) // 2))
    assert torch.equal(merge_atrous(sequences, height, width), x)


def test_atrous_orders_are_those_of_the_paper():
    """Even rows run row by row, odd rows column by column."""
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert atrous(x)[0, :, 0].tolist() == [
        [0, 2, 4, 12, 14, 16],
        [6, 18, 8, 20, 10, 22],
        [1, 3, 5, 13, 15, 17],
        [7, 19, 9, 21, 11, 23],
    ]


def test_patch_merging_gathers_columns_of_neighbours():
    """(2i, 2j), (2i+1, 2j), (2i, 2j+1), (2i+1, 2j+1), each with all channels."""
    merge = PatchMerging(3)
    seen = []
    merge.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 5, 8)
    merge(x)
    x = torch.nn.functional.pad(x, (0, 0, 0, 1))
    corners = ((0, 0), (1, 0), (0, 1), (1, 1))
    want = torch.cat([x[..., row::2, column::2] for row, column in corners], dim=1)
    assert torch.equal(seen[0], want)


@pytest.mark.parametrize("size", [(92, 124), (35, 64)])
def test_images_of_a_batch_do_not_mix_on_odd_maps(size):
    model = shaken("efficientvmamba_tiny", torch.float64)
    x = images(2, size, dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(x), torch.cat([model(x[:1]), model(x[1:])])) < 1e-12


def test_older_keys_load_too():
    model = shaken("efficientvmamba_tiny")
    other = zoo.create_model("efficientvmamba_tiny").eval()
    zoo.load_weights(other, _older(_published(model)))
    with torch.no_grad():
        assert torch.equal(other(images(2)), model(images(2)))


def _published(model) -> dict[str, torch.Tensor]:
    """The weights of `model` by the names of the public code, with the prefix of two wrappers."""
    import json
    from pathlib import Path

    record = json.loads(
        (Path(__file__).parents[1] / "reference/records/efficientvmamba_tiny.json").read_text()
    )
    own = model.state_dict()
    marks = {key: torch.full(shape, float(i)) for i, (key, shape, _) in enumerate(record["state"])}
    probe = zoo.create_model("efficientvmamba_tiny")
    zoo.load_weights(probe, marks)
    theirs = list(marks)
    state = {}
    for key, value in probe.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            name = theirs[int(value.flatten()[0])]
            state[f"module.module.{name}"] = own[key].view(marks[name].shape)
    return {"state_dict": state}


def _older(checkpoint: dict) -> dict:
    swaps = (
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
        (".op.", ".self_attention."),
        ("classifier.norm.", "norm."),
        ("classifier.head.", "head."),
    )
    state = {}
    for key, value in checkpoint["state_dict"].items():
        for new, old in swaps:
            key = key.replace(new, old)
        parts = key.split(".")  # the norm before the scan was ln_1
        if "blocks" in parts and parts[-2] == "norm" and parts[-3].isdigit():
            key = ".".join([*parts[:-2], "ln_1", parts[-1]])
        state[key] = value
    return {"state_dict": state}
