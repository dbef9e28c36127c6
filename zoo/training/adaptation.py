"""`train.adapt`: train adapters beside a frozen base; see docs/methods/adapters.md.

A checkpoint has only what differs from the base, and the base's file and hash. `zoo.weights` puts
both together again wherever weights are loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import merging, registry
from zoo.adapters import adapt, adapter_names
from zoo.build import published_entry
from zoo.errors import BadInput
from zoo.fetch import is_address
from zoo.keys import State
from zoo.settings import ModelConfig, TrainConfig
from zoo.training.method import TrainingMethod
from zoo.weights import identity, read_base, read_source, state_for


class Adaptation(TrainingMethod):
    """Trains adapters, the classifier, and whatever the base does not have.

    Args:
        model: The resolved group `model`, which names the base.
        train: The resolved group `train`.

    Raises:
        BadInput: There is no base.
        BadWeights: The base cannot be read.
    """

    def __init__(self, model: ModelConfig, train: TrainConfig) -> None:
        self.kind, self.arguments = train.adapt, dict(train.adapt_args)
        self.is_resumed = train.resume is not None
        source = _source(model, is_resumed=self.is_resumed)
        resumed = train.resume
        path, content = read_base(source, resumed) if resumed else read_source(source)
        if model.base is not None and not self.is_resumed:
            content = merging.with_base(content, model.base, source)
        self.content, self.source = content, source if is_address(source) else str(path.resolve())
        self.base: State = {}
        self.model: nn.Module | None = None
        self._kept: list[str] = []

    def transform(self, model: nn.Module) -> nn.Module:
        """Return the model with the base's weights and new adapters, frozen but for these."""
        self.base = state_for(model, self.content, self.source)
        own = model.state_dict()
        if self.is_resumed:
            fitting = {k: v for k, v in self.base.items() if k in own and own[k].shape == v.shape}
            model.load_state_dict(fitting, strict=False)
        try:
            adapt(model, self.kind, **self.arguments)
        except BadInput as error:
            raise BadInput(f"train.adapt={self.kind}: {error}") from error
        names = adapter_names(model)
        for key, parameter in model.named_parameters():
            if names[key] not in self.base and merging.MARK not in names[key]:
                parameter.requires_grad_(True)
        return model

    def checkpoint_entries(self, model: nn.Module) -> dict[str, object]:
        """Return what describes the base and the adapters."""
        rank, alpha = self.arguments.get("rank", 4), self.arguments.get("alpha")
        self.model = model
        base = {"source": self.source, "sha256": identity(self.content, self.source)}
        scale = 1.0 if alpha is None else alpha / rank
        about = {"kind": self.kind, "rank": rank, "scale": scale, "base": base}
        return {merging.KEY: about}

    def check_resumed(self, content: Mapping[str, Any], path: Path) -> None:
        """Raise `BadWeights` unless the base is the one that the run started from."""
        found = identity(self.content, self.source)
        merging.check_base(found, content[merging.KEY], self.source, str(path))

    def split_state(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors that are trained or differ from the base, under the base's names.

        The averaged weights, which are saved after the model, have the same names.
        """
        names, state = adapter_names(model), model.state_dict()
        if model is self.model:
            trained = {key for key, p in model.named_parameters() if p.requires_grad}
            self._kept = [
                key
                for key, value in state.items()
                if key in trained or not _same(value, self.base.get(names[key]))
            ]
        return {names[key]: state[key] for key in self._kept}, {}

    def joined_state(
        self, model: nn.Module, state: dict[str, Tensor], rest: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the whole state of the model: what the checkpoint lacks is the base's."""
        names = adapter_names(model)
        own = model.state_dict()
        unknown = {key: value for key, value in state.items() if key not in names.values()}
        return {
            key: state[names[key]] if names[key] in state else own[key] for key in own
        } | unknown


def _same(value: Tensor, base: Tensor | None) -> bool:
    """Return whether a tensor has the values of the base."""
    return (
        base is not None
        and value.shape == base.shape
        and torch.equal(value.cpu(), base.to(value.dtype).cpu())
    )


def _source(model: ModelConfig, *, is_resumed: bool) -> str:
    """Return the file, run folder or address of the base."""
    if is_resumed and model.base is not None:
        return model.base
    if model.checkpoint_path is not None:
        return model.checkpoint_path
    if model.pretrained and registry.is_packaged(model.name) and model.encoder is None:
        return published_entry(registry.get_spec(model.name))["url"]
    kind = "model.pretrained=true is not enough: it" if model.pretrained else "train.adapt"
    raise BadInput(
        f"{kind} needs the file of the base, which checkpoints of adapters refer to; give"
        " model.checkpoint_path=<run folder, file or address>"
        + ("" if model.pretrained else ", or model.pretrained=true")
    )
