"""Attention between binary codes of tokens (EcoFormer, arXiv 2209.09004, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.blocks.precision import outside_autocast
from zoo.blocks.widths import Group, Slice, positions, rows
from zoo.errors import ZooError

BITS, ANCHORS = 16, 25  # of all published models
NEIGHBOURS = 10  # most and least similar tokens that should have equal and opposite codes
STEPS, RATE, MOMENTUM = 100, 5e-4, 0.9  # of the descent that fits one bit


class HashNotFitted(ZooError):
    """The hash functions of a model have not been fitted, so it cannot be trained."""


# B batch, H heads, N tokens, D features of a head, M anchors, K bits
def kernel(s_BHND: Tensor, anchors_HMD: Tensor) -> Tensor:
    """Return the similarity of unit vectors to anchors, exp(-d / (2 mean d)) -> B H N M.

    The mean of the squared distances d is over the tokens and anchors of an image and a head.
    """
    products = s_BHND @ anchors_HMD.transpose(1, 2)
    squares = (anchors_HMD * anchors_HMD).sum(-1).unsqueeze(1)  # H 1 M
    d_BHNM = 1 + squares - 2 * products
    return torch.exp(-d_BHNM / (2 * d_BHNM.mean((2, 3), keepdim=True)))


def binary(x: Tensor) -> Tensor:
    """Return the sign; its gradient is 1 where -1 < x < 1, else 0 (arXiv 1602.02830, eq. 4)."""
    if not x.requires_grad:
        return x.sign()
    clipped = x.clamp(-1.0, 1.0)
    return x.sign().detach() + (clipped - clipped.detach())


def hash_codes(s_BHND: Tensor, anchors: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """Return the codes of tokens, -1, 0 or 1, B H N K (eq. 4).

    Args:
        s_BHND: Queries, which are the keys, too.
        anchors: H M D.
        means: Mean of the kernel over tokens, H 1 M.
        weights: H K M.
    """
    features = kernel(F.normalize(s_BHND, dim=-1), anchors) - means
    return binary(features @ weights.transpose(1, 2))


def float_codes(s_BHND: Tensor, anchors: Tensor, means: Tensor, weights: Tensor) -> Tensor:
    """Compute `hash_codes` outside of autocast, in float32 at least."""
    if torch.jit.is_scripting():
        return hash_codes(s_BHND, anchors, means, weights)
    else:
        values = s_BHND.float() if s_BHND.dtype in (torch.float16, torch.bfloat16) else s_BHND
        tables = (table.to(values.dtype) for table in (anchors, means, weights))
        return outside_autocast(hash_codes, values, *tables)


torch.fx.wrap("float_codes")


class HashedAttention(nn.Module):
    """Attention whose weights are products of binary codes, linear in the number of tokens.

    A token attends to itself with the weight K + 1 besides. As in the public code, the sum of the
    weights counts K + 1 for every token, so it is positive.

    Args:
        channels: Width of the tokens, a multiple of `num_heads`.
        num_heads: Number of heads.
    """

    input_layers, output_parts = ("to_qk", "to_v"), ("proj",)
    has_jumps = True  # rounding may flip the sign of a value close to 0

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_qk = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)
        self.anchors: Tensor
        self.means: Tensor
        self.hash: Tensor
        self.register_buffer("anchors", torch.zeros(num_heads, ANCHORS, channels // num_heads))
        self.register_buffer("means", torch.zeros(num_heads, 1, ANCHORS))
        self.register_buffer("hash", torch.zeros(num_heads, BITS, ANCHORS))
        self.checked = False

    def forward(self, x: Tensor) -> Tensor:
        self._check()
        tokens = x.flatten(1, -2)
        s_BHND = self._heads(self.to_qk(tokens))
        v_BHND = self._heads(self.to_v(tokens))
        c_BHNK = float_codes(s_BHND, self.anchors, self.means, self.hash).to(v_BHND.dtype)
        own = c_BHNK.shape[3] + 1
        summed_BHKD = c_BHNK.transpose(2, 3) @ v_BHND
        weights_BHK1 = c_BHNK.sum(2).unsqueeze(3)
        total = c_BHNK @ weights_BHK1 + own * c_BHNK.shape[2]
        y_BHND = (c_BHNK @ summed_BHKD + own * v_BHND) / total
        return self.proj(y_BHND.transpose(1, 2).flatten(2)).view(x.shape)  # as x

    def _heads(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def prunable(self) -> list[Group]:
        """Declare the heads."""
        heads = self.num_heads
        table = (positions(1, heads, self.proj.in_features // heads),)
        own = (positions(1, heads),)
        slices = [
            *rows(self.to_qk, "to_qk", table),
            *rows(self.to_v, "to_v", table),
            *(Slice(name, 0, own) for name in ("anchors", "means", "hash")),
            Slice("proj.weight", 1, table, reads=True),
        ]
        return [Group("heads", heads, tuple(slices))]

    def resize(self, name: str, width: int) -> None:
        """Note the number of heads."""
        self.num_heads = width

    def is_fitted(self) -> bool:
        """Return whether there are hash functions, fitted or loaded."""
        return bool(self.hash.any())

    def _check(self) -> None:
        """Raise `HashNotFitted` in training if there are no hash functions."""
        if torch.jit.is_scripting():
            return
        else:
            if not self.training or self.checked or torch.compiler.is_compiling():
                return
            if not self.hash.is_meta and not self.is_fitted():
                raise HashNotFitted(
                    "the hash functions are not fitted; call model.fit_hash(images) with a batch of"
                    " training images before the first step, or load trained weights"
                )
            self.checked = True

    @torch.no_grad()
    def fit(self, queries: Tensor) -> None:
        """Fit the hash functions to a batch of queries, B H W C or B N C.

        Anchors are random tokens of the first image; the bits are fitted to its tokens one after
        the other, so that similar tokens have equal codes (section 3.2).
        """
        s_BHND = F.normalize(self._heads(queries.flatten(1, -2).float()), dim=-1)
        count = s_BHND.shape[2]
        chosen = torch.randperm(count, device=s_BHND.device)[:ANCHORS]
        chosen = chosen.repeat(-(-ANCHORS // len(chosen)))[:ANCHORS]  # fewer tokens than anchors
        self.anchors.copy_(s_BHND[0, :, chosen])
        features = kernel(s_BHND, self.anchors.float())
        self.means.copy_(features.mean((0, 2)).unsqueeze(1))
        weights = fit_bits(features[0] - self.means, s_BHND[0])
        self.hash.copy_(weights)


def fit_bits(features_HNM: Tensor, s_HND: Tensor, bits: int = BITS) -> Tensor:
    """Return the weights H K M of bits that agree for similar tokens and differ for others.

    Args:
        features_HNM: What the bits are computed from.
        s_HND: Unit vectors of the tokens, whose products are their similarities.
        bits: Number K of bits.
    """
    heads, count, anchors = features_HNM.shape
    near, far = _neighbours(s_HND, min(NEIGHBOURS, count))
    weights = torch.randn(bits, heads, anchors, device=s_HND.device, dtype=s_HND.dtype)
    done: list[Tensor] = []  # codes of the bits before, H N

    def agreement(y_HN: Tensor) -> Tensor:
        """Return y^T T y / (N K) of each head, T being what the bits before do not explain."""
        wanted = (_at(y_HN, near) - _at(y_HN, far)).sum(-1)
        total = bits * (y_HN * wanted).sum(1)
        for code in done:
            total = total - (y_HN * code).sum(1).square()
        return total / (count * bits)

    for bit in range(bits):
        start = weights[bit].clone()
        with torch.enable_grad():
            weight = start.clone().requires_grad_()
            descent = torch.optim.SGD([weight], lr=RATE, momentum=MOMENTUM, nesterov=True)
            for _ in range(STEPS):
                descent.zero_grad()
                z_HN = (features_HNM @ weight.unsqueeze(2)).squeeze(2)
                (-agreement(torch.tanh(z_HN / 2)).sum()).backward()
                descent.step()
        found = weight.detach()
        codes = [(features_HNM @ w.unsqueeze(2)).squeeze(2).sign() for w in (start, found)]
        better = agreement(codes[1]) > agreement(codes[0])
        weights[bit] = torch.where(better.unsqueeze(1), found, start)
        done.append(torch.where(better.unsqueeze(1), codes[1], codes[0]))
    return weights.transpose(0, 1)


def _neighbours(s_HND: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the most and of the least similar tokens of each token, H N count."""
    near, far = [], []
    for part in s_HND.split(256, dim=1):  # not all pairs at once
        similar = part @ s_HND.transpose(1, 2)
        near.append(similar.topk(count, dim=2).indices)
        far.append(similar.topk(count, dim=2, largest=False).indices)
    return torch.cat(near, dim=1), torch.cat(far, dim=1)


def _at(y_HN: Tensor, numbers_HNC: Tensor) -> Tensor:
    """Return the values of these tokens, H N C."""
    return y_HN.gather(1, numbers_HNC.flatten(1)).view(numbers_HNC.shape)


@torch.no_grad()
def fit_hashes(model: nn.Module, images: Tensor) -> None:
    """Fit every `HashedAttention` of a model, in the order in which they run.

    Args:
        model: Runs on `images`, B C H W; its mode stays as it is.
        images: A batch of training images.
    """
    attentions = [m for m in model.modules() if isinstance(m, HashedAttention)]
    hooks = [
        attention.to_qk.register_forward_hook(
            lambda _layer, _inputs, queries, attention=attention: attention.fit(queries)
        )
        for attention in attentions
    ]
    training = model.training
    try:
        model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
