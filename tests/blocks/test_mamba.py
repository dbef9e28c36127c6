"""The Mamba block against its equations, written out step by step."""

import torch
import torch.nn.functional as F

from zoo.blocks.folding import affine_inputs
from zoo.models.lightm_unet import Mamba


def block(channels=24, **settings):
    torch.manual_seed(0)
    return Mamba(channels, **settings).double()


def by_hand(mamba, x):
    """One sequence, L x C, in the order of arXiv 2312.00752, algorithm 2 and figure 3."""
    scan = mamba.scan
    inner, states = scan.decay().shape
    both = x @ mamba.in_proj.weight.T
    u, gate = both[:, :inner], both[:, inner:]
    taps = mamba.conv.weight.shape[-1]
    past = torch.cat([torch.zeros(taps - 1, inner, dtype=x.dtype), u])
    kernel = mamba.conv.weight[:, 0]
    u = torch.stack([(past[t : t + taps].T * kernel).sum(1) for t in range(len(u))])
    u = F.silu(u + mamba.conv.bias)
    dt, B, C = (u @ scan.x_proj[0].T).split([scan.dt_rank, states, states], dim=1)
    step = F.softplus(dt @ scan.dt_proj[0].T + scan.dt_bias[0])
    h, y = torch.zeros(inner, states, dtype=x.dtype), []
    for t in range(len(u)):
        h = torch.exp(step[t, :, None] * scan.decay()) * h + (step[t] * u[t])[:, None] * B[t]
        y.append(h @ C[t] + scan.skip * u[t])
    return (torch.stack(y) * F.silu(gate)) @ mamba.out_proj.weight.T


def test_the_block_is_its_equations():
    for settings in ({}, {"d_state": 3, "kernel_size": 2, "expansion": 1}):
        mamba = block(**settings)
        torch.nn.init.normal_(mamba.scan.skip)
        x = torch.randn(2, 11, 24, dtype=torch.float64)
        y = mamba(x)
        for one, want in zip(y, x, strict=True):
            torch.testing.assert_close(one, by_hand(mamba, want), rtol=1e-10, atol=1e-12)


def test_no_step_sees_a_later_one():
    mamba, x = block(), torch.randn(1, 20, 24, dtype=torch.float64)
    before = mamba(x)
    x[:, 12:] += 1
    after = mamba(x)
    assert torch.equal(after[:, :12], before[:, :12])
    assert not torch.allclose(after[:, 12], before[:, 12])


def test_fresh_parameters():
    """Decay rates 1 to 16, skips of 1, steps from 1e-3 to 1e-1, weights of the steps by rank."""
    mamba = block(400)
    assert mamba.scan.dt_rank == 25
    torch.testing.assert_close(
        mamba.scan.decay(), -torch.arange(1.0, 17, dtype=torch.float64).expand(800, -1)
    )
    assert (mamba.scan.skip == 1).all()
    steps = F.softplus(mamba.scan.dt_bias)
    assert 1e-3 <= steps.min() < 1.5e-3
    assert 7e-2 < steps.max() <= 1e-1 + 1e-9
    assert 0.19 < mamba.scan.dt_proj.abs().max() <= 0.2  # 25 ** -0.5


def test_a_norms_affine_part_moves_into_the_first_projection():
    mamba, x = block(), torch.randn(2, 7, 24, dtype=torch.float64)
    scale, shift = torch.randn(2, 24, dtype=torch.float64)
    other = affine_inputs(mamba, scale, shift)
    torch.testing.assert_close(other(x), mamba(scale * x + shift))
    assert mamba.in_proj.bias is None, "the block itself stays as it was"
