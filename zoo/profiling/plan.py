"""The plan of a benchmark: which models, sizes, runtimes and batch sizes to measure.

Plans are checked without building a model: the facts of each model contain its name and sizes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zoo import registry, runtimes
from zoo.errors import BadInput, UnknownModel
from zoo.inputs import published_input
from zoo.profiling.production import Production
from zoo.profiling.timing import MeasurementBudget
from zoo.settings import ProfileConfig

FUSED = {"both": (False, True), "true": (True,), "false": (False,)}
Sides = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One measurement to make.

    Attributes:
        model: Name for `create_model`.
        image: C H W, or C D H W of a volume.
        fused: Whether the model is re-parameterised.
        runtime: Name of a runtime.
        batch: Number of images.
        refused: Why the measurement is impossible, if that is known without trying it.
    """

    model: str
    image: Sides
    fused: bool
    runtime: str
    batch: int
    refused: str | None = None

    @property
    def input_size(self) -> Sides:
        """Size of the input, B C H W."""
        return (self.batch, *self.image)

    def __str__(self) -> str:
        variant = "fused" if self.fused else "unfused"
        return f"{self.model} {variant} {self.runtime} {'x'.join(map(str, self.input_size))}"


@dataclass
class Plan:
    """A checked benchmark request.

    Attributes:
        models: Names for `create_model`.
        arguments: The other arguments of `create_model`.
        images: Requested image sizes; one number is a square image, None the default of each model.
        variants: Pairs of runtime and whether the model is fused.
        batches: Batch sizes.
        settings: Arguments of `measure` that all cases share.
        layers: Whether to profile layers as well.
        production: What to measure besides the latency of calls one after the other.
    """

    models: list[str]
    arguments: dict[str, Any]
    images: list[Sides | None]
    variants: list[tuple[str, bool]]
    batches: list[int]
    settings: dict[str, Any]
    layers: bool = False
    production: Production = field(default_factory=Production)

    def cases(self) -> list[Case]:
        """List all cases, grouped by model, and within a model by whether it is fused."""
        found = []
        for name in self.models:
            images = list(dict.fromkeys(self._image(name, requested) for requested in self.images))
            variants = sorted(self.variants, key=lambda variant: variant[1])
            for fused, group in itertools.groupby(variants, key=lambda variant: variant[1]):
                names = [runtime for runtime, _ in group]
                found += [
                    Case(name, image, fused, runtime, batch, refused)
                    for (image, refused), runtime, batch in itertools.product(
                        images, names, self.batches
                    )
                ]
        return found

    def requested_settings(self) -> dict[str, Any]:
        """Return the settings that are saved as `asked` in each record."""
        threads = self.settings["threads"] or torch.get_num_threads()
        extra = self.production.requested()
        return {**self.settings, "threads": threads, "layers": self.layers, **extra}

    def _image(self, name: str, requested: Sides | None) -> tuple[Sides, str | None]:
        """Return C H W for `name`, and the reason if the model cannot run on it."""
        channels, *default = published_input(name)["size"] or (3,)
        channels = self.arguments.get("in_chans") or channels
        if requested is None:
            default = _as_list(self.arguments.get("img_size")) or default
            if not default:
                raise BadInput(f"{name} has no default image size; set profile.image_sizes")
            requested = tuple(default) * 2 if len(default) == 1 else tuple(default)
        axes = 3 if len(default) == 3 else 2
        sides = requested * 2 if (len(requested), axes) == (1, 2) else requested
        if len(sides) != axes:
            expected = "[height, width]" if axes == 2 else "[depth, height, width] (volumes)"
            reason = f"profile.image_sizes={list(sides)}: {name} takes {expected}"
            return (channels, *sides), reason
        return (channels, *sides), _not_a_multiple(name, sides)


def make_plan(names: Sequence[str], arguments: dict[str, Any], profile: ProfileConfig) -> Plan:
    """Check every setting, without building a model.

    Args:
        names: Names of models, or glob patterns.
        arguments: The other arguments of `create_model`.
        profile: The settings `profile.*`.

    Raises:
        UnknownModel: No model has this name, or none matches a pattern.
        BadInput: A setting is invalid.
    """
    fused = str(profile.fused).lower()
    if fused not in FUSED:
        raise BadInput(f"profile.fused={profile.fused!r} must be both, true or false")
    for key in ("runtimes", "batch_sizes"):
        if not getattr(profile, key):
            raise BadInput(f"profile.{key}=[] is empty; list at least one value")
    for batch in profile.batch_sizes:
        if batch < 1:
            raise BadInput(f"profile.batch_sizes: {batch} is not a batch size; use 1 or more")
    MeasurementBudget(profile.min_runs, profile.min_time, profile.max_time).validate()
    production = Production(profile.pace, profile.input, profile.sustain)
    production.check()
    settings = {
        "threads": profile.threads,
        "dtype": profile.dtype,
        "channels_last": profile.channels_last,
    }
    for runtime in profile.runtimes:
        runtimes.check_settings(runtime, **settings)
    if profile.layers and "eager" not in profile.runtimes:
        raise BadInput(
            "profile.layers=true needs the runtime 'eager'; add it to "
            f"profile.runtimes={list(profile.runtimes)}"
        )
    return Plan(
        models=resolve_names(names),
        arguments=arguments,
        images=[_sides(size) for size in profile.image_sizes or [None]],
        variants=list(itertools.product(dict.fromkeys(profile.runtimes), FUSED[fused])),
        batches=list(dict.fromkeys(profile.batch_sizes)),
        settings={
            **settings,
            "min_runs": profile.min_runs,
            "min_time": profile.min_time,
            "max_time": profile.max_time,
        },
        layers=profile.layers,
        production=production,
    )


def resolve_names(patterns: Sequence[str]) -> list[str]:
    """Return the models that match names and glob patterns, in order and without duplicates.

    Args:
        patterns: Registered names, glob patterns, `timm/<name>` or `timm/<pattern>`.

    Raises:
        UnknownModel: No model has this name (the message suggests similar ones), or no model
            matches a pattern.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if any(character in pattern for character in "*?["):
            matches = registry.list_models(pattern)
        else:
            matches = [registry.get_spec(pattern).full_name]
        if not matches:
            raise UnknownModel(f"no model matches {pattern!r}; zoo.list_models() lists all models")
        found |= dict.fromkeys(matches)
    return list(found)


def _not_a_multiple(name: str, sides: Sides) -> str | None:
    """Return why a model cannot run on these sides, if its facts exclude them."""
    if registry.is_timm(name):
        return None  # timm does not publish the multiple; the model itself raises
    multiple = registry.get_spec(name).facts.get("input", {}).get("multiple", 1)
    if all(side % multiple == 0 for side in sides):
        return None
    size = "x".join(map(str, sides))
    return f"{name} cannot run at {size}: every side must be a multiple of {multiple}"


def _sides(size: Any) -> Sides | None:
    """Check one entry of `profile.image_sizes`: a number, a list of two or three, or null."""
    if size is None:
        return None
    sides = tuple(_as_list(size))
    if len(sides) > 3 or not sides or not all(type(side) is int and side > 0 for side in sides):
        raise BadInput(f"profile.image_sizes={size!r} is not a number of pixels or [height, width]")
    return sides


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
