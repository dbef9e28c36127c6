"""The requested properties of an artefact: sizes, dynamic axes, precision."""

from dataclasses import dataclass

DEFAULT_MULTIPLE = 32  # pixels; dynamic sizes are tested at multiples of this


@dataclass(frozen=True)
class ExportSpec:
    """The properties that every exporter must give an artefact.

    Attributes:
        input_size: B C H W, or B C D H W for volumes.
        dynamic_batch: The artefact accepts any B.
        dynamic_size: The artefact accepts any H and W (and D).
        opset: Version of ONNX's operator set; None: the exporter's default.
        half: Weights are float16, and so is the computation unless the runtime chooses its own
            precision. Inputs and outputs stay float32.
        multiple: Sides of a dynamic size must be multiples of it, in pixels; None if unknown.
    """

    input_size: tuple[int, ...]
    dynamic_batch: bool = False
    dynamic_size: bool = False
    opset: int | None = None
    half: bool = False
    multiple: int | None = None

    @property
    def traced_size(self) -> tuple[int, ...]:
        """The input shape to trace with, B C H W or B C D H W.

        Tracing turns a dynamic axis into a constant where its example value is special: a batch of
        one image, a feature map of one position, or the model's own size, at which position tables
        are not resampled. This shape avoids all three.
        """
        batch, channels, *sides = self.input_size
        batch = max(2, batch) if self.dynamic_batch else batch
        return (batch, channels, *(self.larger_sides(1) if self.dynamic_size else sides))

    def larger_sides(self, steps: int) -> tuple[int, ...]:
        """Return H W or D H W, larger than in `input_size` by `steps` multiples.

        Each side grows by one multiple more than the side before, so a square becomes a rectangle.
        """
        step = self.multiple or DEFAULT_MULTIPLE
        return tuple(
            (side // step + steps + i) * step for i, side in enumerate(self.input_size[2:])
        )

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Index and name of each dynamic axis of the input."""
        batch = {0: "batch"} if self.dynamic_batch else {}
        sides = ("depth", "height", "width")[-(len(self.input_size) - 2) :]
        return batch | (dict(enumerate(sides, 2)) if self.dynamic_size else {})


def output_names(count: int) -> list[str]:
    """Return the names that artefacts give to `count` outputs."""
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
