"""What is asked of an artefact, in one value that every exporter reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What an exporter is to write.

    Attributes:
        input_size: B C H W (B C D H W of volumes) that is traced.
        dynamic_batch: Leave B open.
        dynamic_size: Leave H and W (and D) open.
        opset: Version of ONNX's operator set; None: the exporter's own.
        half: Weights in float16, and the computation too where the format computes in what it
            holds; what goes in and comes out stays as it is.
    """

    input_size: tuple[int, ...]
    dynamic_batch: bool = False
    dynamic_size: bool = False
    opset: int | None = None
    half: bool = False

    @property
    def traced(self) -> tuple[int, ...]:
        """The shape to trace: where the batch is open, one image would be traced as a constant."""
        batch, *rest = self.input_size
        return (max(2, batch) if self.dynamic_batch else batch, *rest)

    @property
    def open_axes(self) -> dict[int, str]:
        """The axes that stay open, with their names."""
        batch = {0: "batch"} if self.dynamic_batch else {}
        sides = ("depth", "height", "width")[-(len(self.input_size) - 2) :]
        return batch | (dict(enumerate(sides, 2)) if self.dynamic_size else {})
