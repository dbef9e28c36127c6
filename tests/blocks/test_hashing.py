"""Attention between binary codes: formula, gradient, fitting."""

import pytest
import torch
from torch import nn

from zoo.blocks.hashing import (
    ANCHORS,
    BITS,
    HashedAttention,
    HashNotFitted,
    binary,
    fit_bits,
    fit_hashes,
    hash_codes,
)


def made(channels=8, heads=2):
    torch.manual_seed(0)
    attention = HashedAttention(channels, heads).double()
    for table in (attention.anchors, attention.means, attention.hash):
        nn.init.normal_(table)
    return attention.eval()


def test_the_attention_is_the_written_out_sum():
    attention, x = made(), torch.randn(1, 3, 2, 8, dtype=torch.float64)
    tokens = x.flatten(1, 2)
    s, v = (layer(tokens).view(6, 2, 4) for layer in (attention.to_qk, attention.to_v))
    out = torch.zeros(6, 2, 4, dtype=torch.float64)
    for head in range(2):
        unit = s[:, head] / s[:, head].norm(dim=1, keepdim=True)
        d = ((unit[:, None] - attention.anchors[head]) ** 2).sum(-1)  # 6 tokens, 25 anchors
        features = torch.exp(-d / (2 * d.mean())) - attention.means[head]
        codes = torch.sign(features @ attention.hash[head].T)
        for i in range(6):
            weights = codes @ codes[i]
            top = (weights[:, None] * v[:, head]).sum(0) + (BITS + 1) * v[i, head]
            out[i, head] = top / (weights.sum() + (BITS + 1) * 6)
    want = attention.proj(out.flatten(1)).view(x.shape)
    torch.testing.assert_close(attention(x), want)


def test_the_gradient_of_a_sign_passes_between_minus_1_and_1():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.3, 4.0], requires_grad=True)
    y = binary(x)
    assert y.tolist() == [-1, -1, 0, 1, 1]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_codes_are_computed_in_float32_under_autocast():
    attention, x = made().float(), torch.randn(2, 5, 3, 8)
    with torch.no_grad():
        s = attention._heads(attention.to_qk(x.flatten(1, 2)))
        want = hash_codes(s, attention.anchors, attention.means, attention.hash)
        with torch.autocast("cpu", torch.bfloat16):
            from zoo.blocks.hashing import float_codes

            have = float_codes(s, attention.anchors, attention.means, attention.hash)
    assert torch.equal(have, want)


def test_training_without_hash_functions_is_refused():
    attention, x = HashedAttention(8, 2), torch.randn(2, 4, 4, 8)
    attention.eval()(x)  # counting and timing need no fitted hash
    with pytest.raises(HashNotFitted, match=r"fit_hash\(images\)"):
        attention.train()(x)
    attention.fit(attention.to_qk(x))
    attention(x)


def test_fitted_codes_agree_for_similar_tokens():
    """Two groups of tokens: those of one group get one code, those of the other another."""
    torch.manual_seed(0)
    centres = nn.functional.normalize(torch.randn(2, 4), dim=1)
    tokens = torch.cat([centres[i] + 0.05 * torch.randn(40, 4) for i in (0, 1)])
    attention = HashedAttention(4, 1)
    attention.fit(tokens[None])
    unit = nn.functional.normalize(tokens, dim=1)[None, None]
    codes = hash_codes(unit, attention.anchors, attention.means, attention.hash)[0, 0]
    same = (codes[:40] @ codes[:40].T).mean()
    other = (codes[:40] @ codes[40:].T).mean()
    assert same > 4
    assert other < -4
    assert attention.anchors.shape == (1, ANCHORS, 4)


def test_a_bit_is_never_worse_than_its_start():
    torch.manual_seed(0)
    features = torch.randn(2, 30, ANCHORS)
    tokens = nn.functional.normalize(torch.randn(2, 30, 4), dim=2)
    similar = tokens @ tokens.transpose(1, 2)
    wanted = torch.zeros_like(similar)
    wanted.scatter_(2, similar.topk(10, dim=2).indices, 1.0)
    wanted.scatter_(2, similar.topk(10, dim=2, largest=False).indices, -1.0)

    def agreement(weights):
        y = (features @ weights.unsqueeze(2)).sign()
        return (y.transpose(1, 2) @ wanted @ y).flatten()

    torch.manual_seed(1)
    start = torch.randn(1, 2, ANCHORS)[0]
    torch.manual_seed(1)
    fitted = fit_bits(features, tokens, bits=1)
    assert fitted.shape == (2, 1, ANCHORS)
    assert (agreement(fitted[:, 0]) >= agreement(start)).all()
    assert (agreement(fitted[:, 0]) > agreement(start)).any()


def test_all_attentions_of_a_model_are_fitted_in_one_pass():
    torch.manual_seed(0)
    model = nn.Sequential(HashedAttention(8, 2), nn.LayerNorm(8), HashedAttention(8, 1)).train()
    fit_hashes(model, torch.randn(2, 5, 6, 8))
    assert model[0].is_fitted()
    assert model[2].is_fitted()
    assert model.training
    assert not model[0].to_qk._forward_hooks
