"""What a sweep is asked to measure: models, sizes, forms, runtimes, batches, checked beforehand.

Nothing here builds a model: names, sizes and settings are known from the facts of each model.
"""

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch

from zoo import registry, runtimes
from zoo.errors import BadInput, UnknownModel
from zoo.inputs import published_input
from zoo.profiling.latency import Effort
from zoo.settings import ProfileConfig

FUSED = {"both": (False, True), "true": (True,), "false": (False,)}
Sides = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One measurement that is to be made.

    Attributes:
        model: Name for `create_model`.
        image: C H W, or C D H W of a volume.
        fused: Whether the model is re-parameterised.
        runtime: Name of a runtime.
        batch: Number of images.
        refused: Why it cannot be made, where that is known without trying.
    """

    model: str
    image: Sides
    fused: bool
    runtime: str
    batch: int
    refused: str | None = None

    @property
    def input_size(self) -> Sides:
        """B C H W."""
        return (self.batch, *self.image)

    def __str__(self) -> str:
        form = "fused" if self.fused else "unfused"
        return f"{self.model} {form} {self.runtime} {'x'.join(map(str, self.input_size))}"


@dataclass
class Plan:
    """What is asked, checked.

    Attributes:
        models: Names for `create_model`.
        arguments: Its other arguments.
        images: Sides of each asked size; a single one is a square; None for a model's own.
        forms: Pairs of runtime and whether fused.
        batches: Batch sizes.
        settings: Arguments of `measure` that all cases share.
        layers: Whether layers are timed, too.
    """

    models: list[str]
    arguments: dict[str, Any]
    images: list[Sides | None]
    forms: list[tuple[str, bool]]
    batches: list[int]
    settings: dict[str, Any]
    layers: bool = False

    def cases(self) -> list[Case]:
        """List every case, those of a model in a row, those of one form of it in a row."""
        found = []
        for name in self.models:
            images = list(dict.fromkeys(self._image(name, wanted) for wanted in self.images))
            forms = sorted(self.forms, key=lambda form: form[1])
            for fused, group in itertools.groupby(forms, key=lambda form: form[1]):
                chosen = [runtime for runtime, _ in group]
                found += [
                    Case(name, image, fused, runtime, batch, refused)
                    for (image, refused), runtime, batch in itertools.product(
                        images, chosen, self.batches
                    )
                ]
        return found

    def asked(self) -> dict[str, Any]:
        """Return the settings as they are kept in each record, threads by their number."""
        threads = self.settings["threads"] or torch.get_num_threads()
        return {**self.settings, "threads": threads, "layers": self.layers}

    def _image(self, name: str, wanted: Sides | None) -> tuple[Sides, str | None]:
        """Return C H W for `name`, and what speaks against it."""
        channels, *own = published_input(name)["size"] or (3,)
        channels = self.arguments.get("in_chans") or channels
        if wanted is None:
            own = _listed(self.arguments.get("img_size")) or own
            if not own:
                raise BadInput(f"{name} states no size of its own; give profile.image_sizes")
            wanted = tuple(own) * 2 if len(own) == 1 else tuple(own)
        axes = 3 if len(own) == 3 else 2
        sides = wanted * 2 if (len(wanted), axes) == (1, 2) else wanted
        if len(sides) != axes:
            form = "[height, width]" if axes == 2 else "[depth, height, width], as it takes volumes"
            return (channels, *sides), f"profile.image_sizes={list(sides)}: {name} wants {form}"
        return (channels, *sides), _off_grid(name, sides)


def make_plan(names: Sequence[str], arguments: dict[str, Any], profile: ProfileConfig) -> Plan:
    """Check every setting, without building a model.

    Args:
        names: Names of models, or globs over them.
        arguments: Other arguments of `create_model`.
        profile: The group `profile`.

    Raises:
        UnknownModel: A name or glob that no model has.
        BadInput: A value that cannot work.
    """
    fused = str(profile.fused).lower()
    if fused not in FUSED:
        raise BadInput(f"profile.fused={profile.fused!r} must be both, true or false")
    for key in ("runtimes", "batch_sizes"):
        if not getattr(profile, key):
            raise BadInput(f"profile.{key}=[] leaves nothing to measure")
    for batch in profile.batch_sizes:
        if batch < 1:
            raise BadInput(f"profile.batch_sizes: {batch} is not a number of images")
    Effort(profile.min_runs, profile.min_time, profile.max_time).check()
    settings = {
        "threads": profile.threads,
        "dtype": profile.dtype,
        "channels_last": profile.channels_last,
    }
    for runtime in profile.runtimes:
        runtimes.check_settings(runtime, **settings)
    if profile.layers and "eager" not in profile.runtimes:
        raise BadInput(
            "profile.layers=true: layers are timed in the runtime 'eager', which is not in "
            f"profile.runtimes={list(profile.runtimes)}"
        )
    return Plan(
        models=resolve_names(names),
        arguments=arguments,
        images=[_sides(size) for size in profile.image_sizes or [None]],
        forms=list(itertools.product(dict.fromkeys(profile.runtimes), FUSED[fused])),
        batches=list(dict.fromkeys(profile.batch_sizes)),
        settings={
            **settings,
            "min_runs": profile.min_runs,
            "min_time": profile.min_time,
            "max_time": profile.max_time,
        },
        layers=profile.layers,
    )


def resolve_names(patterns: Sequence[str]) -> list[str]:
    """Return the models that names and globs stand for, each once, in the order asked.

    Args:
        patterns: Registered names, globs over them, `timm/<name>` or `timm/<glob>`.

    Raises:
        UnknownModel: A name that there is not (the nearest are named), or a glob without a match.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        is_timm = registry.is_timm(pattern)
        is_glob = any(character in pattern for character in "*?[")
        if is_timm:
            matches = _timm_names(pattern, is_glob)
        elif is_glob:
            matches = registry.list_models(pattern)
        else:
            matches = [registry.get_spec(pattern).name]
        if not matches:
            raise UnknownModel(f"no model matches {pattern!r}; zoo.list_models() shows all")
        found |= dict.fromkeys(matches)
    return list(found)


def _timm_names(pattern: str, is_glob: bool) -> list[str]:
    if not is_glob:
        return [registry.TIMM + registry.timm_name(pattern)]
    bare = pattern.removeprefix(registry.TIMM)
    return [registry.TIMM + name for name in fnmatch.filter(timm.list_models(), bare)]


def _off_grid(name: str, sides: Sides) -> str | None:
    """Say that a model does not take these sides, where its facts tell."""
    if registry.is_timm(name):
        return None  # timm's configurations do not tell; the model itself does
    multiple = registry.get_spec(name).facts.get("input", {}).get("multiple", 1)
    if all(side % multiple == 0 for side in sides):
        return None
    size = "x".join(map(str, sides))
    return f"{name} does not run at {size}: every side must be a multiple of {multiple}"


def _sides(size: Any) -> Sides | None:
    """Check one of `profile.image_sizes`: a number, a list of two or three, or null."""
    if size is None:
        return None
    sides = tuple(_listed(size))
    if len(sides) > 3 or not sides or not all(type(side) is int and side > 0 for side in sides):
        raise BadInput(
            f"profile.image_sizes={size!r}: give a positive number of pixels, or [height, width]"
        )
    return sides


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
