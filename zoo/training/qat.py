"""Quantisation-aware training: `train.qat=true` fine-tunes the weights of a finished float run.

The model is fused, traced and given fake quantisation by `zoo.deploy.int8_graph`; everything else
is an ordinary run. See docs/qat.md.
"""

import itertools

import torch
from torch import Tensor, nn

from zoo.data.datamodule import ImageData
from zoo.deploy import int8_graph
from zoo.deploy.int8_graph import Prepared
from zoo.environment import need
from zoo.errors import BadInput, NotExportable, first_line
from zoo.reparam import reparameterize
from zoo.settings import ModelConfig
from zoo.training.method import TrainingMethod
from zoo.weights import QAT_KEY

CALIBRATION_BATCHES = 4  # number of batches that initialise the ranges
OBSERVED_SHARE = (
    0.5  # share of the updates during which ranges follow the data; then they are frozen
)


class QuantizationAwareTraining(TrainingMethod):
    """Trains the graph that is exported in int8.

    Args:
        model: The resolved group `model`, which names the weights to start from.

    Raises:
        BadInput: No weights are given, or a setting has no effect.
        MissingExtra: A package is not installed.
    """

    def __init__(self, model: ModelConfig) -> None:
        if model.checkpoint_path is None and not model.pretrained:
            raise BadInput(
                "train.qat=true starts from trained weights; give model.checkpoint_path=<run folder"
                " or file>, or model.pretrained=true"
            )
        need("train.qat", int8_graph.PACKAGES)
        for key in ("drop_rate", "drop_path_rate"):
            if rate := getattr(model, key):
                raise BadInput(
                    f"model.{key}={rate:g} has no effect with train.qat=true; leave it out"
                )
        self._freeze_at = 1

    def check_processes(self, count: int) -> None:
        """Raise `BadInput` for several processes: each would observe its own ranges."""
        if count > 1:
            raise BadInput(
                f"train.qat=true runs in one process, not in {count}; give train.devices=1"
            )

    def transform(self, model: nn.Module) -> nn.Module:
        """Return the fused model, which is the form that is deployed."""
        return reparameterize(model.eval())

    def prepare(
        self, model: nn.Module, data: ImageData, *, resumed: bool, layout: torch.memory_format
    ) -> Prepared:
        """Return the graph with fake quantisation, with ranges from a few training batches.

        Raises:
            NotExportable: The model cannot be traced, or its graph cannot be trained.
        """
        net = int8_graph.prepare(model, (data.in_chans, *data.image_size))
        net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        if not resumed:
            device = next(net.parameters()).device
            loader = data.train_dataloader()
            loader.load_state_dict({"epoch": 0, "batch": 0})
            batches = itertools.islice(loader, CALIBRATION_BATCHES)
            net.calibrate(images.to(device, memory_format=layout) for images, _ in batches)
            images = torch.zeros(2, *net.meta["input_size"], device=device)
            _check_gradients(net, images, layout)
        return net

    def checkpoint_entries(self, model: nn.Module) -> dict[str, object]:
        """Return what `int8_graph.rebuild` needs."""
        assert isinstance(model, Prepared)
        return {QAT_KEY: int8_graph.facts(model)}

    def plan(self, updates: int) -> None:
        """Freeze the ranges after a share of all `updates`."""
        self._freeze_at = max(1, round(OBSERVED_SHARE * updates))

    def start_epoch(self, model: nn.Module, update: int) -> None:
        """Freeze the ranges from the planned update on."""
        self.after_update(model, update)

    def after_update(self, model: nn.Module, update: int) -> None:
        """Freeze the ranges from the planned update on."""
        if update >= self._freeze_at:
            assert isinstance(model, Prepared)
            model.fix_ranges()


def _check_gradients(net: Prepared, images: Tensor, layout: torch.memory_format) -> None:
    """Raise `NotExportable` unless a training step works: some operators have no gradient."""
    try:
        net.eval()(images.to(memory_format=layout)).sum().backward()
    except Exception as error:  # operators raise errors of any kind
        is_last = layout == torch.channels_last
        advice = "; train.channels_last=false may help" if is_last else ""
        raise NotExportable(
            f"{type(net).__name__} cannot be trained with train.qat: {first_line(error)}{advice}"
        ) from error
    finally:
        net.zero_grad()
        net.train()
