"""Compact transformers: tokenisers, sequence pooling, the quirky block, tables, public names."""

import pytest
import torch
import torch.nn.functional as F
from published import public_state
from support import difference, fresh, images, shaken
from torch import nn

import zoo
from zoo.blocks.positions import sinusoid
from zoo.keys import convert_keys
from zoo.models.compact_transformers import VARIANTS, RenormedBlock, SeqPoolHead

# Published names that do not follow from the records: a second layer in the tokeniser.
OWN_LAYOUTS = ("cct_14_7x2_*", "cct_7_7x2_224_sine", "cct_*_3x2_32")

KINDS = ("vit_2_4_32", "cvt_2_4_32", "cct_2_3x2_32")


def test_all_registered_variants_are_there():
    assert len(VARIANTS) == 35
    assert set(VARIANTS) == set(zoo.list_models(family="compact_transformers"))


@pytest.mark.parametrize("name", ["cct_7_3x1_32", "cvt_7_4_32", "vit_7_4_32_sine"])
def test_public_names_become_ours(name):
    state, model = public_state(name), zoo.create_model(name)
    assert zoo.load_weights(model, state) == []
    own = model.state_dict()
    pairs = {
        "stem.0.project.weight": "tokenizer.conv_layers.0.0.weight",
        "stages.0.blocks.0.position.table": "classifier.positional_emb",
        "stages.1.blocks.0.norm1.weight": "classifier.blocks.0.pre_norm.weight",
        "stages.7.blocks.0.norm2.weight": "classifier.blocks.6.norm1.weight",
        "stages.3.blocks.0.mixer.qkv.weight": "classifier.blocks.2.self_attn.qkv.weight",
        "stages.3.blocks.0.mlp.fc2.bias": "classifier.blocks.2.linear2.bias",
        "head.fc.weight": "classifier.fc.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours], state[theirs]), ours


def test_another_pooling_leaves_the_published_one_out():
    model = zoo.create_model("cct_7_3x1_32", global_pool="avg")
    assert zoo.load_weights(model, public_state("cct_7_3x1_32")) == []
    pyramid = zoo.create_model("cct_7_3x1_32", features_only=True)
    assert zoo.load_weights(pyramid, public_state("cct_7_3x1_32")) == []


@pytest.mark.parametrize("name", KINDS)
def test_fixed_tables_are_sines_and_are_not_trained(name):
    model = zoo.create_model(f"{name}_sine")
    table = model.stages[0].blocks[0].position.table
    assert not table.requires_grad
    assert torch.equal(table, sinusoid(table.shape[1], 128))
    assert zoo.create_model(name).stages[0].blocks[0].position.table.requires_grad


def test_sinusoid_by_hand():
    table = sinusoid(3, 6)[0].double()
    for p in range(3):
        for i in range(6):
            angle = torch.tensor(p / 10000 ** (2 * (i // 2) / 6), dtype=torch.float64)
            want = angle.cos() if i % 2 else angle.sin()
            assert table[p, i].item() == pytest.approx(want.item(), abs=1e-7)


@pytest.mark.parametrize(
    ("name", "size", "want"),
    [
        ("cct_7_3x1_32", (33, 30), (17, 15)),
        ("cct_2_3x2_32", (33, 30), (9, 8)),
        ("cct_7_7x2_224", (100, 65), (7, 5)),
        ("cvt_2_4_32", (35, 30), (8, 7)),
        ("vit_2_4_32", (35, 30), (8, 7)),
    ],
)
def test_sizes_of_the_levels(name, size, want):
    model = zoo.create_model(name, features_only=True).eval()
    assert len(model.feature_info) == 1 + VARIANTS[name]["depth"]
    with torch.no_grad():
        maps = model(images(1, size))
    assert {tuple(m.shape[2:]) for m in maps} == {want}


def test_the_second_norm_is_on_the_residual_path():
    block = RenormedBlock(8, nn.Identity(), nn.Identity(), eps=1e-5)
    nn.init.uniform_(block.norm2.weight)
    x = torch.randn(2, 5, 8)
    y = x + F.layer_norm(x, (8,))
    z = F.layer_norm(y, (8,), block.norm2.weight, block.norm2.bias)
    torch.testing.assert_close(block(x), 2 * z)


def test_sequence_pooling_is_the_written_out_formula():
    head = SeqPoolHead(8, 3, pool="attention").eval()
    x = torch.randn(2, 8, 3, 5)
    weights = (x * head.attention_pool.weight[0, :, None, None]).sum(1).flatten(1).softmax(1)
    want = (x.flatten(2) * weights[:, None]).sum(2)
    torch.testing.assert_close(head(x, pre_logits=True), want)
    torch.testing.assert_close(head(x), head.fc(want))
    kept = head.attention_pool
    head.reset(7)
    assert head.attention_pool is kept, "another classifier leaves the pooling as it was"
    head.reset(7, "avg")
    assert isinstance(head.attention_pool, nn.Identity)


def test_attention_drops_while_training():
    model, x = fresh("cct_2_3x2_32").train(), images(2)
    torch.manual_seed(0)
    assert not torch.allclose(model(x), model(x))
    still = fresh("cct_2_3x2_32", attn_drop_rate=0.0).train()
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("img_size", [64, (48, 32)])
def test_tables_are_resampled_once_as_they_would_be_each_time(name, img_size):
    native = fresh(name, torch.float64)
    model = zoo.create_model(name, img_size=img_size).double().eval()
    zoo.load_weights(model, native.state_dict())
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    x = images(2, size, dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(x), native(x)) < 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_script")
@pytest.mark.parametrize("name", ["vit_2_4_32", "cct_2_3x2_32"])
def test_the_other_kinds_are_programs_too(name):
    """The contract's tests of programs run over CVT, the smallest."""
    for model in (shaken(name), zoo.reparameterize(shaken(name))):
        for size in ((32, 32), (37, 50)):
            x = images(2, size)
            with torch.no_grad():
                want = model(x)
                assert difference(want, shaken(name)(x)) < 1e-4
                assert difference(torch.jit.script(model)(x), want) < 1e-4
                assert torch.equal(torch.fx.symbolic_trace(model)(x), want)
                assert difference(torch.export.export(model, (x,)).module()(x), want) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_2_4_32", "cct_2_3x2_32"])
def test_the_other_kinds_export_to_onnx(name, tmp_path):
    made = zoo.export(shaken(name), "onnx", tmp_path, input_size=(1, 3, 32, 40))
    assert made.agreement.proven


@pytest.mark.parametrize("name", ["vit_2_4_32", "cvt_2_4_32"])
def test_images_smaller_than_a_patch(name):
    with pytest.raises(zoo.BadInput, match="at least 4 x 4"):
        shaken(name)(images(1, (3, 9)))
    with pytest.raises(zoo.BadInput, match="img_size=3: at least 4 x 4"):
        zoo.create_model(name, img_size=3)


def test_published_initialisation():
    torch.manual_seed(0)
    model = zoo.create_model("vit_7_4_32")
    positions = model.stages[0].blocks[0]
    assert not positions.class_token.token.any()
    assert positions.position.table.std().item() == pytest.approx(0.2, rel=0.05)
    conv = model.stem[0].project.weight
    assert conv.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.05)
    assert model.stages[1].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_two_convolutions_have_the_authors_names():
    """The layers of the tokeniser are numbered; its second convolution is `conv_layers.1.0`."""
    model = zoo.create_model("cct_2_3x2_32")
    one = public_state("cct_7_3x1_32")
    own = model.state_dict()
    public = {key: own[f"stem.{i}.project.weight"] for i, key in enumerate(CONVOLUTIONS)}
    assert set(CONVOLUTIONS[:1]) <= one.keys()
    head = {key: t for key, t in one.items() if key.startswith("classifier.")}
    found = convert_keys(public | head, model)
    assert torch.equal(found["stem.1.project.weight"], own["stem.1.project.weight"])


CONVOLUTIONS = ("tokenizer.conv_layers.0.0.weight", "tokenizer.conv_layers.1.0.weight")
