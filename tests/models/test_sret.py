"""SReT: slices, a permutation that stays, shared blocks under two names, programs."""

import numpy as np
import pytest
import torch
from published import public_state
from support import difference, fresh, images, quick, shaken

import zoo
from zoo.models.sret import Recursion, Scalar, SharedBlock, order_of, sliced
from zoo.ops import fixed_permutation
from zoo.reparam import randomize_parameters

# Published names that do not follow from the records: transposed position tables.
OWN_LAYOUTS = ("sret_*",)


@pytest.mark.parametrize("name", ["sret_t", "sret_t_wo_slice"])
def test_public_names_become_ours(name):
    state, model = public_state(name), zoo.create_model(name)
    assert zoo.load_weights(model, state) == []
    own = model.state_dict()
    public = "transformers.1.blocks"
    pairs = {
        "stem.convs.2.norm.weight": "patch_embed.bn3.weight",
        "stages.1.blocks.0.block.attention.qkv.weight": f"{public}.2.attn.qkv.weight",
        "stages.1.blocks.4.block.scale2.weight": f"{public}.18.coefficient4.bias",
        "stages.1.blocks.4.project1.mlp.fc1.weight": f"{public}.17.mlp.fc1.weight",
        "stages.1.blocks.4.project2.scale.weight": f"{public}.19.coefficient2.bias",
        "stages.1.blocks.1.project2.norm.bias": f"{public}.7.norm1.bias",
        "stages.2.downsample.weight": "pools.1.conv.weight",
        "head.fc.norm.weight": "norm.weight",
        "head.fc.linear.weight": "head.weight",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(own[ours], state[theirs]), ours
    table = own["stem.positions.position.table"]
    assert torch.equal(table[0].T.view(64, 28, 28), state["pos_embed"][0])


@pytest.mark.parametrize("missing", [0, 2])
def test_either_name_of_a_shared_block_will_do(missing):
    state = public_state("sret_t")
    for stage in range(3):
        for key in list(state):
            parts = key.split(".")
            if parts[:3] == ["transformers", str(stage), "blocks"] and int(parts[3]) % 4 == missing:
                del state[key]
    assert zoo.load_weights(zoo.create_model("sret_t"), state) == []


def test_the_fixed_permutation_never_changes():
    want = np.random.RandomState(0).permutation(784)  # noqa: NPY002
    assert fixed_permutation(784).tolist() == want.tolist()
    torch.manual_seed(5)
    assert torch.equal(fixed_permutation(784), fixed_permutation(784))
    assert torch.equal(torch.ops.zoo.fixed_permutation(100), fixed_permutation(100))
    torch.library.opcheck(torch.ops.zoo.fixed_permutation.default, (7,))


def test_an_order_is_undone_and_drawn_anew_in_training_only():
    x = torch.randn(2, 24, 3)
    for training in (False, True):
        order, back = order_of(x, training)
        assert torch.equal(x[:, order][:, back], x)
    assert torch.equal(order_of(x, False)[0], order_of(x, False)[0])
    assert not torch.equal(order_of(x, True)[0], order_of(x, True)[0])


def test_slices_attend_for_themselves():
    block = randomize_parameters(SharedBlock(8, 16, num_heads=2, drop_path=0.0).double()).eval()
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    whole = block(x, 3, False)
    for i in range(3):
        part = x[:, 8 * i : 8 * i + 8]
        torch.testing.assert_close(whole[:, 8 * i : 8 * i + 8], block(part, 1, False))
    assert sliced(x, 1) is x


def test_shuffled_slices_are_slices_of_the_permuted_tokens():
    block = randomize_parameters(SharedBlock(8, 16, num_heads=2, drop_path=0.0).double()).eval()
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    order = fixed_permutation(24)
    have = block(x, 2, True)
    for half in (order[:12], order[12:]):
        torch.testing.assert_close(have[:, half], block(x[:, half], 1, False))


def test_every_block_is_applied_twice():
    unit = Recursion(8, 16, 8, num_heads=2, slices=(2, 1), drop_path=0.0)
    unit = randomize_parameters(unit.double()).eval()
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    want = unit.project1(unit.block(tokens, 2, False))
    want = unit.project2(unit.block(want, 1, False)).transpose(1, 2).view(2, 8, 4, 6)
    torch.testing.assert_close(unit(x), want)
    assert sum(p.numel() for p in zoo.create_model("sret_t").parameters()) == 4755979


def test_evaluation_of_a_sliced_model_does_not_depend_on_seeds():
    model, x = shaken("sret_t"), images(2)
    with torch.no_grad():
        torch.manual_seed(1)
        want = model(x)
        torch.manual_seed(2)
        assert torch.equal(model(x), want)
        state = torch.get_rng_state()
        model(x)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    model = fresh("sret_t").train()
    torch.manual_seed(1)
    first = model.stages[0](model.stem(x))
    assert not torch.allclose(model.stages[0](model.stem(x)), first, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "multiple"),
    [("sret_t", (64, 100), 32), ("sret_s", (40, 64), 32), ("sret_lt_16_14_1", (64, 64), 224)],
)
def test_sizes_that_cannot_be_sliced(name, size, multiple):
    with pytest.raises(zoo.BadInput, match=f"multiple of {multiple}, such as"):
        zoo.create_model(name).eval()(images(1, size))


def test_without_slices_any_size_is_taken():
    model = shaken("sret_t_wo_slice", features_only=True)
    with torch.no_grad():
        for size in ((1, 1), (97, 130)):
            maps = model(images(1, size))
            want = [tuple(-(-side // stride) for side in size) for stride in (8, 16, 32)]
            assert [tuple(m.shape[2:]) for m in maps] == want


def test_tables_of_other_sizes_are_resampled():
    native = fresh("sret_t_wo_slice", torch.float64)
    model = zoo.create_model("sret_t_wo_slice", img_size=(64, 96)).double().eval()
    zoo.load_weights(model, native.state_dict())
    x = images(2, (64, 96), dtype=torch.float64)
    with torch.no_grad():
        assert difference(model(x), native(x)) < 1e-9


def test_fusing_leaves_the_numbers_of_the_residual_path():
    fused = zoo.reparameterize(shaken("sret_t"))
    kept = {n.rpartition(".")[2] for n, m in fused.named_modules() if isinstance(m, Scalar)}
    assert kept == {"keep1", "keep2", "keep"}


def test_a_model_without_slices_exports_to_onnx(tmp_path):
    name = "sret_t_wo_slice"
    model = shaken(name, **quick(name, 1))
    assert zoo.export(model, "onnx", tmp_path, input_size=(1, 3, 64, 96)).agreement.proven
