"""`train.shrink=0.5` makes hidden channels and heads zero in training, to be cut by `zoo prune`.

The share grows over periods. At the start of a period the least important units are chosen; after
every update of it, their weights are multiplied by (T - t - 1) / (T - t), where t is the number of
the update in the period of T updates, so that they are exactly zero at its end (HESSO). They stay
zero, and training of the others goes on. Cutting them leaves the outputs as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.blocks.widths import multiply
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput
from zoo.importance import score
from zoo.narrowing import Place, places
from zoo.settings import TrainConfig
from zoo.training.method import TrainingMethod


class Shrinking(TrainingMethod):
    """Training in which units shrink to zero.

    Args:
        train: The group `train`, with `shrink` above 0.
    """

    def __init__(self, train: TrainConfig) -> None:
        self.train = train
        self.length = 0  # updates of a period
        self.zero: dict[str, Tensor] = {}  # group -> its units that are zero
        self.shrinking: dict[str, Tensor] = {}  # group -> its units that shrink in this period
        self._found: dict[int, dict[str, Place]] = {}

    def prepare(
        self, model: nn.Module, data: ImageData, *, resumed: bool, layout: torch.memory_format
    ) -> nn.Module:
        """Check that the model has units.

        Raises:
            BadInput: It has none.
        """
        found = self._places(model)
        if not found:
            raise BadInput(
                f"train.shrink={self.train.shrink:g}: {type(model).__name__} has no hidden width or"
                " head that can be cut; choose another model"
            )
        self.zero = {name: torch.zeros(0, dtype=torch.long) for name in found}
        self.shrinking = dict(self.zero)
        return model

    def plan(self, updates: int) -> None:
        """Divide the updates into periods.

        Raises:
            BadInput: There are fewer updates than periods.
        """
        self.length = int(updates * self.train.shrink_until / self.train.shrink_periods)
        if self.length < 1:
            raise BadInput(
                f"train.shrink_periods={self.train.shrink_periods} is more than the"
                f" {int(updates * self.train.shrink_until)} updates until train.shrink_until; lower"
                " it, or train longer"
            )

    def after_update(self, model: nn.Module, update: int) -> None:
        """Shrink the units of this period, and keep those of earlier ones at zero."""
        period, step = divmod(update - 1, self.length)
        if step == 0 and period <= self.train.shrink_periods:
            self._begin(model, period)
        self._shrink(model, update)

    def after_averaging(self, averaged: nn.Module, update: int) -> None:
        """Shrink the same units of the averaged weights."""
        self._shrink(averaged, update)

    def _begin(self, model: nn.Module, period: int) -> None:
        """Note what is zero now, and choose the units that shrink next."""
        self.zero = {
            name: torch.cat([units, self.shrinking[name]]).sort().values
            for name, units in self.zero.items()
        }
        self.shrinking = {name: units[:0] for name, units in self.zero.items()}
        if period == self.train.shrink_periods:
            return
        found = self._places(model)
        scores = score(self.train.shrink_score, found)
        for name, units in self.zero.items():
            scores[name] = scores[name].cpu().index_fill(0, units, -1.0)  # counted, but not again
        share = self.train.shrink * (period + 1) / self.train.shrink_periods
        ranked = torch.cat(list(scores.values())).sort().values
        threshold = ranked[min(round(share * len(ranked)), len(ranked) - 1)]
        for name, place in found.items():
            group, values = place.group, scores[name]
            least = min(group.multiple, group.width)
            left = max(least, int((values >= threshold).sum()))
            left = min(-(-left // group.multiple) * group.multiple, group.width)
            gone = values.argsort(stable=True)[: group.width - left]
            self.shrinking[name] = gone[values[gone] >= 0].sort().values

    def _shrink(self, model: nn.Module, update: int) -> None:
        period, step = divmod(update - 1, self.length)
        factor = (self.length - step - 1) / (self.length - step)
        if period >= self.train.shrink_periods:
            factor = 0.0
        for name, place in self._places(model).items():
            for units, by in ((self.shrinking[name], factor), (self.zero[name], 0.0)):
                if len(units):
                    multiply(place.block, place.group, units, by)

    def _places(self, model: nn.Module) -> dict[str, Place]:
        """Return the groups of a model, which are found once."""
        if id(model) not in self._found:
            self._found[id(model)] = places(model)
        return self._found[id(model)]

    def state_dict(self) -> dict[str, Any]:
        """Return which units are zero, and which shrink."""
        return {"zero": dict(self.zero), "shrinking": dict(self.shrinking)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for own, saved in ((self.zero, state["zero"]), (self.shrinking, state["shrinking"])):
            if own.keys() != saved.keys():
                raise ValueError("the groups are not those of the model")
            own.update({name: torch.as_tensor(units).long() for name, units in saved.items()})
