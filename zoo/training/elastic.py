"""`train.elastic=[0.25,0.5]`: one training for several sizes, each a prefix of the next.

In every step the whole network learns from the labels, and narrower ones learn from its outputs for
the same images: the smallest, and one of the others at random (the sandwich rule with in-place
distillation of BigNAS, arXiv 2003.11142). A narrower network has the first hidden channels of every
perceptron and inverted residual (MatFormer, arXiv 2310.07707). Gradients are added up before the
update. Dropout and stochastic depth apply to the whole network only.

`zoo prune prune.allocation=nested` takes a narrower network out.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.data.datamodule import ImageData
from zoo.errors import BadInput
from zoo.narrowing import cut, hidden_places, prefix
from zoo.training.method import TrainingMethod


class Nested(nn.Module):
    """The network of the first hidden channels of another one, with the same parameters.

    Batch norms normalise with statistics of their own.

    Args:
        whole: The other network.
        share: Share of the hidden channels of every group.
    """

    def __init__(self, whole: nn.Module, share: float) -> None:
        super().__init__()
        found = hidden_places(whole)
        kept = prefix(found, share)
        self.cuts: dict[str, list[tuple[int, Tensor]]] = {}  # name -> axes and positions
        for name, units in kept.items():
            place = found[name]
            for part in place.group.slices:
                tensor = f"{place.path}.{part.tensor}".lstrip(".")
                self.cuts.setdefault(tensor, []).append((part.axis, part.positions(units)))
        self.form = cut(whole, kept)
        for module in self.form.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        # The parameters of this network are slices of those of the other, which is no child of it.
        self.__dict__["whole"] = whole

    def forward(self, x: Tensor) -> Any:
        whole: Any = self.whole
        parameters: dict[str, Tensor] = dict(whole.named_parameters())
        for name, cuts in self.cuts.items():
            if name in parameters:
                tensor = parameters[name]
                for axis, positions in cuts:
                    tensor = tensor.index_select(axis, positions.to(tensor.device))
                parameters[name] = tensor
        return torch.func.functional_call(self.form, parameters, (x,))


class Elastic(TrainingMethod):
    """Training of nested networks.

    Args:
        shares: Shares of the hidden channels, each above 0 and below 1.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = sorted(shares)
        self.nested: list[Nested] = []

    def check_processes(self, count: int) -> None:
        """Raise `BadInput` for several processes, which would not add up all gradients."""
        if count > 1:
            raise BadInput(
                f"train.elastic runs in one process, not in {count}; give train.devices=1"
            )

    def prepare(
        self, model: nn.Module, data: ImageData, *, resumed: bool, layout: torch.memory_format
    ) -> nn.Module:
        """Make the narrower networks.

        Raises:
            BadInput: The data is not for classification, or the model has no hidden channels.
        """
        if data.task != "classification":
            raise BadInput(
                f"train.elastic is for classification, but data.name={data.config.name} is for"
                f" {data.task}; leave it out"
            )
        if not hidden_places(model):
            raise BadInput(
                f"train.elastic: {type(model).__name__} has no hidden width that can be cut; choose"
                " another model"
            )
        self.nested = [Nested(model, share) for share in self.shares]
        return model

    def branches(self, model: nn.Module, images: Tensor, outputs: Any) -> Iterator[Tensor]:
        """Yield the losses of the smallest network and of another one."""
        teacher = outputs.detach().float().softmax(1)
        others = range(1, len(self.nested))
        drawn = [1 + int(torch.randint(len(others), ()))] if others else []
        for index in (0, *drawn):
            nested = self.nested[index]
            nested.train()
            student = nested(images)
            yield -(teacher * F.log_softmax(student.float(), 1)).sum(1).mean()
