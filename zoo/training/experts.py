"""Experts Weights Averaging: several copies of an MLP in training, their mean afterwards.

In training, the tokens are split at random into equal parts, and each part goes through one of the
copies (experts), so a step costs what it costs without them. After every step the experts move
towards each other. For evaluation one MLP has the mean of their weights. (arXiv 2308.06093)
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.blocks.mlp import Mlp
from zoo.errors import BadInput
from zoo.settings import TrainConfig
from zoo.training.checkpoint_schema import damaged
from zoo.training.method import TrainingMethod

DEFAULTS: dict[str, Any] = {"number": 4, "share": 0.01, "every": 2}


class ExpertsMlp(nn.Module):
    """N copies of an MLP; each token of a training step goes through one of them.

    Args:
        mlp: Works on the last axis, each token alone.
        number: Number N of copies.
    """

    def __init__(self, mlp: nn.Module, number: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([mlp, *(copy.deepcopy(mlp) for _ in range(number - 1))])

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional_call(self.experts[0], self.mean(), (x,))
        if len(self.experts) == 1:
            return self.experts[0](x)
        tokens = x.flatten(0, -2)  # T C
        order = torch.randperm(len(tokens)).to(tokens.device)
        parts = torch.tensor_split(tokens[order], len(self.experts))  # the first get the remainder
        results = torch.cat([e(part) for e, part in zip(self.experts, parts, strict=True)])
        return torch.empty_like(results).index_copy(0, order, results).unflatten(0, x.shape[:-1])

    def mean(self) -> dict[str, Tensor]:
        """Return the mean of the experts' parameters, by name."""
        return {
            name: torch.stack([e.get_parameter(name) for e in self.experts]).mean(0)
            for name, _ in self.experts[0].named_parameters()
        }

    def average(self, share: float) -> None:
        """Move every expert towards the mean of the others: W <- (1 - share) W + share * mean."""
        count = len(self.experts)
        for name, _ in self.experts[0].named_parameters():
            whole = torch.stack([e.get_parameter(name).detach() for e in self.experts])
            others = (whole.sum(0) - whole) / (count - 1)
            for expert, values in zip(self.experts, torch.lerp(whole, others, share), strict=True):
                expert.get_parameter(name).data.copy_(values)

    def merged(self) -> nn.Module:
        """Return one MLP with the mean of the weights."""
        one = copy.deepcopy(self.experts[0])
        one.load_state_dict(self.mean(), strict=False)
        return one


def install(model: nn.Module, *, number: int, every: int) -> list[str]:
    """Replace every `every`-th MLP of a model by experts, in place; the last MLP is one of them.

    Returns:
        The names of the replaced modules.

    Raises:
        BadInput: The model has no such MLP.
    """
    names = [name for name, module in model.named_modules() if type(module) is Mlp]
    chosen = names[::-1][::every][::-1]
    if not chosen:
        raise BadInput(
            f"train.experts: {type(model).__name__} has no MLPs on tokens (zoo.blocks.mlp.Mlp);"
            " choose a transformer, such as cct_2_3x2_32"
        )
    for name in chosen:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, ExpertsMlp(getattr(owner, child), number))
    return chosen


def merge(model: nn.Module) -> nn.Module:
    """Return a copy with one MLP for each group of experts, and the names of the plain model."""
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, ExpertsMlp):
            parent, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent), child, module.merged())
    return merged


def check(experts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `train.experts` with defaults for those that are missing.

    Raises:
        BadInput: One is unknown or invalid.
    """
    for key in experts:
        if key not in DEFAULTS:
            raise BadInput(f"train.experts.{key} is unknown; its entries are {', '.join(DEFAULTS)}")
    found = {**DEFAULTS, **experts}
    for key in ("number", "every"):
        if type(found[key]) is not int or found[key] < 1:
            raise BadInput(f"train.experts.{key}={found[key]} must be a whole number, at least 1")
    share, number = found["share"], found["number"]
    most = 1.0 if number == 1 else (number - 1) / number
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= most:
        raise BadInput(
            f"train.experts.share={share} must be between 0 and {most:.3g}, which makes"
            f" {number} experts equal at once"
        )
    return found


class ExpertsAveraging(TrainingMethod):
    """Trains experts; the share of the others rises linearly from 0 to its end value.

    Args:
        train: The resolved group `train`.
    """

    def __init__(self, train: TrainConfig) -> None:
        found = check(train.experts)
        self.number, self.share, self.every = found["number"], found["share"], found["every"]
        self.updates = 1

    def transform(self, model: nn.Module) -> nn.Module:
        """Return the model with experts."""
        install(model, number=self.number, every=self.every)
        return model

    def plan(self, updates: int) -> None:
        """Note the number of updates, at the last of which the share has its end value."""
        self.updates = updates

    def after_update(self, model: nn.Module, update: int) -> None:
        """Move the experts towards each other."""
        share = self.share * min(1.0, update / self.updates)
        if share > 0:
            for module in model.modules():
                if isinstance(module, ExpertsMlp) and len(module.experts) > 1:
                    module.average(share)

    def split_state(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the merged state, and the experts for resuming."""
        rest = {key: value for key, value in model.state_dict().items() if ".experts." in key}
        return merge(model).state_dict(), rest

    def joined_state(
        self, model: nn.Module, state: dict[str, Tensor], rest: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state with the experts in the place of their means."""
        means = {_merged_name(key) for key in model.state_dict() if ".experts." in key}
        return {key: value for key, value in state.items() if key not in means} | rest

    def check_resumed(self, content: Mapping[str, Any], path: Path) -> None:
        """Raise `BadWeights` if the checkpoint has only the mean of the experts."""
        if not content.get("unmerged"):
            raise damaged(path, "unmerged, which has the experts, is missing")


def _merged_name(key: str) -> str:
    """Return the name of a parameter of an expert in the merged model."""
    before, _, after = key.partition(".experts.")
    return f"{before}.{after.partition('.')[2]}"
