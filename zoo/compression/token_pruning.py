"""Zero-TPrune: fewer tokens in later blocks of a trained transformer, without training.

Paper: Wang et al., "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph
       in Pre-Trained Transformers" (arXiv 2305.17328).
Here:  tokens are dropped after a block, by importance (a page rank of its attention graph) and by
       similarity (of its keys). How many are dropped is fixed before, from the counted FLOPs, so
       all shapes are static. Which are dropped depends on the image. Iterations, thresholds and
       blocks follow descriptions of the paper; its code was not available.
"""

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.transformer import SelfAttention, TransformerBlock
from zoo.counting.count import count
from zoo.errors import BadInput, ZooError, first_line

BLOCKS = (1, 3, 6, 9, 11)  # of twelve: tokens are dropped after these, counted from one
ROUNDS = (40, 12, 1)  # of the page rank: in the first, the second and the last third
VARIANCES = (0.01, 0.7)  # of a head's scores, whose mean is one; other heads do not vote
SIMILAR = 0.5  # share of the dropped tokens that are dropped because others are similar
COUNTS = 5  # of the FLOPs, to solve a schedule
TOLERANCE = 0.02  # of the share of the FLOPs
Schedule = str | Mapping[int, float]


def page_rank(graph: Tensor, rounds: int) -> Tensor:
    """Return how important each token is in an attention graph.

    Args:
        graph: Attention, ... N N; each row is a query and sums to one.
        rounds: Number of votes; each token's weight in a vote is its score in the one before.

    Returns:
        Scores ... N, which sum to one.
    """
    scores = graph.mean(dim=-2, keepdim=True)  # the first vote, in which all are equal
    for _ in range(rounds - 1):
        scores = scores @ graph
    return scores.squeeze(-2)


def importance(graph: Tensor, rounds: int) -> Tensor:
    """Return the importance of each token over all heads, B N.

    Heads whose scores hardly vary, or vary too much, are left out unless all do.

    Args:
        graph: Attention, B H N N.
        rounds: Number of votes.
    """
    scores = page_rank(graph, rounds) * graph.shape[-1]  # B H N, mean one
    spread = (scores - 1).square().mean(dim=-1)
    votes = ((spread >= VARIANCES[0]) & (spread <= VARIANCES[1])).to(scores.dtype)
    votes = votes + (votes.sum(dim=1, keepdim=True) == 0).to(scores.dtype)
    squares = (votes[:, :, None] * scores.square()).sum(dim=1)
    return (squares / votes.sum(dim=1)[:, None]).sqrt()


def select(scores: Tensor, keys: Tensor, similar: int, unimportant: int) -> Tensor:
    """Return the tokens to keep, B K, in the order of their importance.

    Tokens are sorted by importance and split alternately. Of the second half, the tokens whose keys
    are most similar to a key of the first are dropped; then the least important of all.

    Args:
        scores: Importance, B N.
        keys: Keys, B N C.
        similar: Number of tokens to drop for similarity, at most `N // 2`.
        unimportant: Number of tokens to drop for importance.
    """
    total = scores.shape[1]
    order = scores.topk(total, dim=1).indices
    if similar:
        first, second = order[:, ::2], order[:, 1::2]
        unit = torch.nn.functional.normalize(keys, dim=-1)
        near = (_taken(unit, second) @ _taken(unit, first).mT).amax(dim=-1)
        different = near.topk(second.shape[1] - similar, dim=1, largest=False).indices
        order = torch.cat([first, second.gather(1, different)], dim=1)
    kept = scores.gather(1, order).topk(total - similar - unimportant, dim=1).indices
    return order.gather(1, kept)


def _taken(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    return x_BNC.gather(1, index_BK[:, :, None].expand(-1, -1, x_BNC.shape[2]))


class PrunedBlock(nn.Module):
    """A block, after which some tokens are dropped.

    Args:
        block: A block with an attention whose keys and queries can be read.
        tokens: Number of its tokens besides the prefix.
        prefix: Number of tokens that are never dropped: class tokens.
        similar: Number of tokens to drop for similarity.
        unimportant: Number of tokens to drop for importance.
        rounds: Rounds of the page rank.
    """

    has_jumps = True  # rounding may decide between two tokens

    def __init__(
        self,
        block: nn.Module,
        tokens: int,
        prefix: int,
        similar: int,
        unimportant: int,
        rounds: int,
    ) -> None:
        super().__init__()
        self.block = block
        self.tokens, self.prefix, self.rounds = tokens, prefix, rounds
        self.similar, self.unimportant = similar, unimportant
        self.maps = bool(getattr(block, "maps", False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if not self.similar + self.unimportant:
            return y
        if self.maps:  # B C H W -> B N C
            x, y = x.flatten(2).mT, y.flatten(2).mT
        if x.shape[1] != self.prefix + self.tokens:
            raise BadInput(
                f"tokens were dropped for images with {self.tokens} tokens, not"
                f" {x.shape[1] - self.prefix}; prune for this image size"
            )
        q, k, num_heads, scale = _queries_and_keys(self.block, x)
        heads = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k))
        q_BHND, k_BHND = heads
        graph = (scale * q_BHND @ k_BHND.mT).softmax(dim=-1)
        scores = importance(graph, self.rounds)[:, self.prefix :]
        kept = select(scores, k[:, self.prefix :], self.similar, self.unimportant)
        y = torch.cat([y[:, : self.prefix], _taken(y[:, self.prefix :], kept)], dim=1)
        return y.mT.unsqueeze(2) if self.maps else y  # B C 1 N


def _queries_and_keys(block: Any, x: Tensor) -> tuple[Tensor, Tensor, int, float]:
    """Return queries and keys B N C, the number of heads, and the factor of the products."""
    attention: Any = block.mixer if isinstance(block, TransformerBlock) else block.attn
    normed = block.norm1(x)
    rows = attention.qkv.out_features // 3
    bias = attention.qkv.bias
    part = torch.nn.functional.linear(
        normed, attention.qkv.weight[: 2 * rows], None if bias is None else bias[: 2 * rows]
    )
    q, k = part.chunk(2, dim=-1)
    return q, k, attention.num_heads, attention.scale


def _is_plain(block: nn.Module) -> bool:
    """Return whether a block has attention among all tokens, without anything tied to a grid."""
    if any(isinstance(part, nn.Conv2d) for part in block.modules()):
        return False
    if isinstance(block, TransformerBlock):
        return type(block.mixer) is SelfAttention
    attention = getattr(block, "attn", None)
    return (
        type(block).__module__ == "timm.models.vision_transformer"
        and type(block).__name__ == "Block"
        and type(attention).__name__ == "Attention"
        and isinstance(getattr(attention, "q_norm", None), nn.Identity)
    )


def _blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks, in order.

    Raises:
        BadInput: The model is not a plain transformer.
    """
    title = type(model).__name__
    why = "tokens can be dropped only where blocks of attention among all tokens follow each other"
    if hasattr(model, "stages"):
        parts = [
            (f"stages.{i}.{name}", part)
            for i, stage in enumerate(model.stages)  # type: ignore[arg-type]
            for name, part in [
                *([("downsample", stage.downsample)] if hasattr(stage, "downsample") else []),
                *((f"blocks.{j}", b) for j, b in enumerate(getattr(stage, "blocks", ()))),
            ]
            if not isinstance(part, nn.Identity)
        ]
    elif type(model).__module__ == "timm.models.vision_transformer":
        parts = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]  # type: ignore[arg-type]
    else:
        raise BadInput(f"{title}: {why}, as in ViT, DeiT, CCT, T2T-ViT, KAT and SparseFormer")
    plain = [i for i, (_, part) in enumerate(parts) if _is_plain(part)]
    if any(isinstance(part, PrunedBlock) for _, part in parts):
        raise BadInput(f"{title}: tokens are dropped already; prune the original model")
    if len(plain) < 2:
        raise BadInput(f"{title}: {why}; it has other blocks")
    for name, part in parts[plain[0] :]:
        if not _is_plain(part):
            raise BadInput(f"{title}: {why}; {name} ({type(part).__name__}) is between or after")
    return [parts[i][0] for i in plain]


def prune_tokens(
    model: nn.Module, schedule: Schedule, input_size: Sequence[int] = (1, 3, 224, 224)
) -> nn.Module:
    """Return a copy of a plain transformer that drops tokens on the way, without training.

    Args:
        model: A ViT, DeiT, CCT, CVT, T2T-ViT, KAT or SparseFormer, with trained weights, in
            evaluation mode.
        schedule: `"flops:0.65"` for that share of the FLOPs, within 0.02; or the share of the
            tokens to keep after each of some blocks, by number from 0: `{2: 0.7, 5: 0.7}`.
        input_size: B C H W of the images; the result takes no other size.

    Raises:
        BadInput: The model has windows, pooled stages or anything else that needs all tokens; the
            schedule is invalid, or cannot be met.
    """
    if hasattr(model, "feature_info") and not hasattr(model, "forward_head"):
        raise BadInput("features_only models need all tokens of a map; prune the classifier")
    names = _blocks(model)
    model = copy.deepcopy(model).eval()
    tokens, prefix = _token_count(model, names[0], input_size)
    if not isinstance(schedule, str):
        shares = _checked(schedule, len(names))
    else:
        shares = _solved(model, names, tokens, prefix, _target(schedule), input_size)
    _insert(model, names, tokens, prefix, shares)
    for name in ("forward_intermediates", "get_intermediate_layers"):
        if hasattr(model, name):
            setattr(model, name, functools.partial(_refuse, name))
    try:
        with torch.no_grad():
            model(torch.zeros(tuple(input_size)))
    except Exception as error:  # whatever needs all tokens
        raise BadInput(
            f"{type(model).__name__} does not run with fewer tokens: {first_line(error)}"
        ) from error
    return model


def _refuse(name: str, *args: Any, **kwargs: Any) -> Any:
    raise BadInput(f"{name}: tokens were dropped, so there are no feature maps; use the original")


def _token_count(model: nn.Module, first: str, input_size: Sequence[int]) -> tuple[int, int]:
    """Return the number of tokens besides the prefix, and that of the prefix."""
    seen: list[tuple[int, ...]] = []
    block = model.get_submodule(first)
    hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    try:
        with torch.no_grad():
            model(torch.zeros(tuple(input_size)))
    except ZooError:
        raise
    except Exception as error:
        raise BadInput(
            f"input_size={tuple(input_size)}: the model does not run on it: {first_line(error)}"
        ) from error
    finally:
        hook.remove()
    shape = seen[0]
    prefix = 0 if len(shape) == 4 else int(getattr(model, "num_prefix_tokens", 0))
    total = shape[2] * shape[3] if len(shape) == 4 else shape[1]
    return total - prefix, prefix


def _checked(schedule: Mapping[int, float], depth: int) -> dict[int, float]:
    if not isinstance(schedule, Mapping):
        raise BadInput(f"schedule={schedule!r}: give 'flops:<share>' or a share for some blocks")
    for block, share in schedule.items():
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth:
            raise BadInput(f"schedule: block {block!r} must be a number from 0 to {depth - 1}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise BadInput(
                f"schedule: block {block} keeps {share!r}; give a share above 0, up to 1"
            )
    return dict(schedule)


def _target(schedule: str) -> float:
    kind, _, text = schedule.partition(":")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if kind != "flops" or not 0 < share <= 1:
        raise BadInput(f"schedule={schedule!r} must be like 'flops:0.65', a share above 0, up to 1")
    return share


def chosen_blocks(depth: int) -> list[int]:
    """Return the blocks after which tokens are dropped, from 0; never the last, nothing follows."""
    numbers = {max(1, round(number * depth / 12)) - 1 for number in BLOCKS}
    return sorted(number for number in numbers if number < depth - 1)


def _solved(
    model: nn.Module,
    names: list[str],
    tokens: int,
    prefix: int,
    target: float,
    input_size: Sequence[int],
) -> dict[int, float]:
    """Return the share to keep after each chosen block, the same for all, for a share of FLOPs."""
    if target == 1:
        return {}
    size = (1, *tuple(input_size)[1:])
    full = count(model, size).macs
    numbers = chosen_blocks(len(names))
    blocks = [model.get_submodule(name) for name in names]

    def saved(share: float) -> float:
        kept = _plan(tokens, len(names), dict.fromkeys(numbers, share))
        return sum(_block_cost(b, tokens + prefix) for b in blocks) - sum(
            _block_cost(block, plan.tokens + prefix, plan)
            for block, plan in zip(blocks, kept, strict=True)
        )

    shares = [n / tokens for n in range(1, tokens + 1)]
    aim = target
    tried: dict[float, float] = {}
    for _ in range(COUNTS):
        # The estimate leaves out some small operations; its error is corrected by counting.
        share = min(shares, key=lambda share: abs(1 - saved(share) / full - aim))
        if share in tried:
            break
        candidate = copy.deepcopy(model)
        _insert(candidate, names, tokens, prefix, dict.fromkeys(numbers, share))
        tried[share] = count(candidate, size).macs / full
        if abs(tried[share] - target) <= TOLERANCE / 4:
            break
        aim += target - tried[share]
    share, found = min(tried.items(), key=lambda pair: abs(pair[1] - target))
    if abs(found - target) > TOLERANCE:
        raise BadInput(
            f"schedule='flops:{target:g}' cannot be met: the nearest is flops:{found:.2f}"
        )
    return dict.fromkeys(numbers, share)


@dataclass(frozen=True)
class _Plan:
    """What happens after a block: its tokens, and how many of them are dropped and why."""

    tokens: int
    similar: int
    unimportant: int
    rounds: int

    @property
    def dropped(self) -> int:
        return self.similar + self.unimportant


def _plan(tokens: int, depth: int, shares: Mapping[int, float]) -> list[_Plan]:
    """Return the plan of each block."""
    plans = []
    for number in range(depth):
        kept = max(1, math.ceil(shares.get(number, 1.0) * tokens - 1e-9))
        similar = min(int(SIMILAR * (tokens - kept)), tokens // 2)
        rounds = ROUNDS[3 * number // depth]
        plans.append(_Plan(tokens, similar, tokens - kept - similar, rounds))
        tokens = kept
    return plans


def _block_cost(block: nn.Module, tokens: int, plan: _Plan | None = None) -> float:
    """Estimate the MACs of a block, and of dropping tokens after it."""
    linear = [part for part in block.modules() if isinstance(part, nn.Linear)]
    attention: Any = block.mixer if isinstance(block, TransformerBlock) else block.attn
    width, heads = attention.qkv.in_features, attention.num_heads
    cost = tokens * sum(part.weight.numel() for part in linear) + 2 * tokens**2 * width
    if plan is not None and plan.dropped:
        cost += 2 * tokens * width**2 + tokens**2 * (width + heads * (plan.rounds - 1))
        cost += tokens**2 * width / 4 if plan.similar else 0
    return cost


def _insert(
    model: nn.Module, names: list[str], tokens: int, prefix: int, shares: Mapping[int, float]
) -> None:
    """Wrap the blocks after which tokens are dropped, in place."""
    for name, plan in zip(names, _plan(tokens, len(names), shares), strict=True):
        if not plan.dropped:
            continue
        parent, _, own = name.rpartition(".")
        inner = model.get_submodule(name)
        block = PrunedBlock(
            inner, plan.tokens, prefix, plan.similar, plan.unimportant, plan.rounds
        ).train(inner.training)
        setattr(model.get_submodule(parent), own, block)
