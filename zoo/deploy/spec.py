"""What is asked of an artefact, in one value that every exporter reads."""

from dataclasses import dataclass

COARSE = 32  # sides of which an open size is tried at in any case, unless the model says another


@dataclass(frozen=True)
class Settings:
    """What an exporter is to write.

    Attributes:
        input_size: B C H W (B C D H W of volumes) that is asked for.
        dynamic_batch: Leave B open.
        dynamic_size: Leave H and W (and D) open.
        opset: Version of ONNX's operator set; None: the exporter's own.
        half: Weights in float16, and the computation too where the format computes in what it
            holds; what goes in and comes out stays as it is.
        multiple: What open sides must be a multiple of, as far as the model says.
    """

    input_size: tuple[int, ...]
    dynamic_batch: bool = False
    dynamic_size: bool = False
    opset: int | None = None
    half: bool = False
    multiple: int | None = None

    @property
    def traced(self) -> tuple[int, ...]:
        """The shape to trace.

        Where the batch is open, one image would be traced as a constant. Where the size is open,
        the model's own would be traced without the resampling of its tables, and a small one with
        maps of a single position, which are constants, too.
        """
        batch, channels, *sides = self.input_size
        batch = max(2, batch) if self.dynamic_batch else batch
        return (batch, channels, *(self.further(1) if self.dynamic_size else sides))

    def further(self, steps: int) -> tuple[int, ...]:
        """Return larger sides that a model with an open size takes, all of them different."""
        step = self.multiple or COARSE
        return tuple(
            (side // step + steps + i) * step for i, side in enumerate(self.input_size[2:])
        )

    @property
    def open_axes(self) -> dict[int, str]:
        """The axes that stay open, with their names."""
        batch = {0: "batch"} if self.dynamic_batch else {}
        sides = ("depth", "height", "width")[-(len(self.input_size) - 2) :]
        return batch | (dict(enumerate(sides, 2)) if self.dynamic_size else {})
