"""Zero-TPrune: ranks, which tokens go, what a schedule costs, and which models are refused."""

import copy
import pickle

import numpy as np
import onnxruntime
import pytest
import timm
import torch

import zoo
from zoo import registry
from zoo.compression import token_pruning
from zoo.compression.token_pruning import (
    PrunedBlock,
    chosen_blocks,
    importance,
    page_rank,
    prune_tokens,
    select,
)
from zoo.reparam import randomize_parameters

SMALL = (1, 3, 32, 32)


def attention(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).softmax(dim=-1)


def trained(name: str = "vit_4_4_32") -> torch.nn.Module:
    torch.manual_seed(0)
    return randomize_parameters(zoo.create_model(name, num_classes=10)).eval()


def test_page_rank_is_the_leading_eigenvector():
    graph = attention(2, 9, 9)
    found = page_rank(graph, 200)
    values, vectors = torch.linalg.eig(graph.mT)
    leading = values.real.argmax(dim=-1)
    for i in range(2):
        vector = vectors[i, :, leading[i]].real
        assert torch.allclose(found[i], vector / vector.sum(), atol=1e-12)
    assert torch.allclose(page_rank(graph, 1), graph.mean(dim=-2))


def test_heads_that_say_nothing_do_not_vote():
    even = torch.full((8, 8), 1 / 8, dtype=torch.float64)
    telling = even.clone()
    telling[:, 0], telling[:, 1:] = 0.3, 0.1
    both = importance(torch.stack([even, telling])[None], 3)
    assert torch.allclose(both, 8 * page_rank(telling, 3)[None])
    assert torch.allclose(importance(even[None, None], 3), torch.ones(1, 8, dtype=torch.float64))


def test_the_least_important_tokens_go():
    scores = torch.tensor([[0.3, 0.9, 0.1, 0.7, 0.5, 0.2]])
    keys = torch.eye(6)[None]
    assert select(scores, keys, 0, 3).tolist() == [[1, 3, 4]]
    assert select(scores, keys, 0, 0).tolist() == [[1, 3, 4, 0, 5, 2]]


def test_copies_go_first():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 8, 16, generator=generator)
    scores = torch.linspace(1, 0.3, 8)[None].clone()
    for token, same in ((3, 2), (6, 5)):  # copies have equal keys, and equal attention
        keys[0, token], scores[0, token] = keys[0, same], scores[0, same]
    kept = select(scores, keys, 2, 0)[0].tolist()
    assert len(kept) == 6
    assert len({2, 3} & set(kept)) == 1
    assert len({5, 6} & set(kept)) == 1


@pytest.mark.parametrize("name", ["vit_2_4_32", "cct_2_3x2_32"])
def test_dropping_nothing_changes_no_bit(name):
    model, x = trained(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        for schedule in ("flops:1", {0: 1.0}):
            assert torch.equal(prune_tokens(model, schedule, SMALL)(x), want)
        block = PrunedBlock(torch.nn.Identity(), 4, 0, 0, 0, 1)
        assert block(x) is x


def test_the_order_of_the_patches_does_not_matter():
    model = trained()
    pruned = prune_tokens(model, {0: 0.5, 2: 0.6}, SMALL).double()
    (first,) = [m for n, m in pruned.named_modules() if n.endswith("blocks.0") and
                isinstance(m, PrunedBlock) and m.tokens == 64]  # fmt: skip
    x = torch.randn(1, 65, 128, dtype=torch.float64)
    order = torch.randperm(64)
    mixed = torch.cat([x[:, :1], x[:, 1:][:, order]], dim=1)
    with torch.no_grad():
        want, have = first(x), first(mixed)
    assert want.shape == (1, 33, 128)
    assert torch.allclose(want[0, 0], have[0, 0])
    rows = [part[0, 1:][part[0, 1:, 0].argsort()] for part in (want, have)]
    assert torch.allclose(*rows)


def test_tokens_are_those_of_the_whole_block():
    model = trained("cct_2_3x2_32")
    pruned = prune_tokens(model, {0: 0.25}, SMALL)
    assert len([m for m in pruned.modules() if isinstance(m, PrunedBlock)]) == 1
    with torch.no_grad():
        level = pruned.forward_features(torch.randn(2, 3, 32, 32))
    assert level.shape[2:] == (1, 16)
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_schedule_costs_what_it_says():
    model = trained("cct_4_3x2_32")
    pruned = prune_tokens(model, "flops:0.85", SMALL)
    full, fewer = (zoo.count(m, SMALL).macs for m in (model, pruned))
    assert fewer / full == pytest.approx(0.85, abs=0.02)
    assert zoo.count(model, SMALL).macs == full, "the original is not changed"


def test_blocks_of_timm_are_pruned_as_well():
    model = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=3).eval()
    pruned = prune_tokens(model, "flops:0.8", (1, 3, 64, 64))
    shape = (1, 3, 64, 64)
    assert zoo.count(pruned, shape).macs / zoo.count(model, shape).macs == pytest.approx(
        0.8, abs=0.02
    )
    assert chosen_blocks(12) == [0, 2, 5, 8, 10]
    assert chosen_blocks(2) == [0]


def test_the_file_chooses_the_same_tokens(tmp_path):
    pruned = prune_tokens(trained("vit_2_4_32"), {0: 0.5}, SMALL)
    made = zoo.export(pruned, "onnx", tmp_path / "x.onnx", input_size=SMALL)
    assert made.agreement is not None
    x = np.random.default_rng(1).standard_normal((5, 3, 32, 32), dtype=np.float32)
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = pruned(torch.from_numpy(x)).numpy()
    assert np.abs(session.run(None, {"input": x})[0] - want).max() < 1e-3 * np.abs(want).max()


def test_a_pruned_model_can_be_copied_and_refuses_what_it_cannot_do():
    pruned = prune_tokens(trained("vit_2_4_32"), {0: 0.5}, SMALL)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = pruned(x)
        assert torch.equal(copy.deepcopy(pruned)(x), want)
        assert torch.equal(pickle.loads(pickle.dumps(pruned))(x), want)
    with pytest.raises(zoo.BadInput, match="no feature maps"):
        pruned.forward_intermediates(x)
    with pytest.raises(zoo.BadInput, match="prune for this image size"):
        pruned(torch.randn(1, 3, 48, 48))
    with pytest.raises(zoo.BadInput, match="dropped already"):
        prune_tokens(pruned, {0: 0.5}, SMALL)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("flops", "must be like 'flops:0.65'"),
        ("flops:0", "must be like"),
        ("flops:nan", "must be like"),
        ("macs:0.5", "must be like"),
        ("flops:0.01", "cannot be met"),
        ({9: 0.5}, "block 9 must be a number from 0 to 1"),
        ({0: 0}, "block 0 keeps 0"),
        ([0.5], "a share for some blocks"),
    ],
)
def test_wrong_schedules_are_named(schedule, said):
    with pytest.raises(zoo.BadInput, match=said):
        prune_tokens(trained("vit_2_4_32"), schedule, SMALL)


PLAIN = {"compact_transformers", "kat", "sparseformer", "t2t_vit"}


def test_every_other_family_is_refused_with_a_reason():
    first: dict[str, str] = {}
    for name in zoo.list_models():
        first.setdefault(registry.get_spec(name).family, name)
    assert set(first) >= PLAIN
    for family, name in first.items():
        if registry.get_spec(name).task != "classification":
            continue
        with torch.device("meta"):
            model = zoo.create_model(name)
        if family in PLAIN:
            assert len(token_pruning._blocks(model)) >= 2
            continue
        with pytest.raises(zoo.BadInput, match=r"^\w+: tokens can be dropped only where") as error:
            token_pruning._blocks(model)
        assert "\n" not in str(error.value)


def test_feature_pyramids_and_windows_of_timm_are_refused():
    levels = zoo.create_model("vit_2_4_32", features_only=True)
    with pytest.raises(zoo.BadInput, match="features_only"):
        prune_tokens(levels, {0: 0.5}, SMALL)
    with torch.device("meta"):
        windows = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(zoo.BadInput, match="as in ViT, DeiT"):
        prune_tokens(windows, {0: 0.5})
