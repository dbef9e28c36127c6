"""The base class of networks for dense prediction whose decoder reads several levels."""

from typing import Any

from torch import Tensor

from zoo.backbone import Backbone, take_levels
from zoo.errors import BadInput


class DenseBackbone(Backbone):
    """An encoder of stages and a decoder that reads the outputs of several of them.

    `forward_features` returns what `decode` makes of these outputs. The levels of `features_only`
    and `forward_intermediates` are those of the encoder.
    """

    def decode(self, maps: list[Tensor], image: Tensor) -> Tensor:
        """Map the outputs of all stages, and the images, to the input of the head."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images B in_chans H W to the decoder's feature map, B num_features H/s W/s.

        Raises:
            BadInput: The size cannot be halved evenly; the message suggests one that can.
        """
        y = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            y = stage(y)
            maps.append(y)
        return self.decode(maps, x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the intermediates of the encoder, like `Backbone.forward_intermediates`.

        The last feature map is the decoder's, or the deepest computed one if `stop_early`.
        """
        options: dict[str, Any] = {"norm": norm, "output_fmt": output_fmt}
        if intermediates_only or stop_early:
            options |= {"stop_early": stop_early, "intermediates_only": intermediates_only}
            return super().forward_intermediates(x, indices, **options)
        levels = take_levels(len(self.feature_info), indices, "indices")
        raw: Any = super().forward_intermediates(x, None, output_fmt=output_fmt)[1]
        maps: Any = super().forward_intermediates(x, None, **options)[1] if norm else raw
        return self.decode(raw, x), [maps[level] for level in levels]

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        """Refuse pruning, because the decoder reads several levels.

        Raises:
            BadInput: Always; `features_only=True` builds only the encoder.
        """
        raise BadInput(
            "the decoder reads every level, so none can be pruned; build with features_only=True"
        )

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that assign parameters to layers; the decoder is the last one."""
        matcher = super().group_matcher(coarse)
        matcher["blocks"] += [(r"^decoder", (99999,))]
        return matcher
