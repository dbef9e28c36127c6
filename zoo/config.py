"""What the entry points have in common: the schema of a run, Hydra, and errors as one line.

Hydra composes `configs/` with the command line; the dataclasses below say which keys there are and
of which type. Two additions: the group `model` is filled from the registry (`model=<any name>`,
`model=timm/<any name>`, no YAML each), and a mistake ends the run with one line that names the
nearest key or model before anything else starts.
"""

import difflib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import registry
from zoo.data.config import DataConfig
from zoo.errors import BadInput, ZooError
from zoo.exporters.config import ExportConfig
from zoo.profiling.config import ProfileConfig
from zoo.quantization.config import QuantizeConfig
from zoo.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass
class ModelConfig:
    """The arguments of `zoo.create_model`."""

    name: str = MISSING
    encoder: str | None = None  # the backbone of unet, fpn and the other decoders
    pretrained: bool = False
    checkpoint_path: str | None = None
    num_classes: int | None = None  # null: as many as the data has
    in_chans: int | None = None  # null: as many as the data has
    img_size: Any = None  # only for models whose parameters depend on the size
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    global_pool: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)  # what only this family takes


@dataclass
class TrainRun:
    """Everything that `train.py` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class EvalRun:
    """Everything that `eval.py` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    weights: str | None = None  # a run folder, a checkpoint, a published file or its address
    artefact: str | None = None  # instead of a model: what export.py wrote, or its folder
    runtime: str | None = None  # what runs the artefact; null: what it was compared in
    batch_size: int = 64
    fused: bool = False  # evaluate the re-parameterised model
    device: str = "auto"
    out: str | None = (
        None  # folder for the table and the confusion matrix; null: beside what is evaluated
    )


@dataclass
class BenchmarkRun:
    """Everything that `benchmark.py` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    models: list[str] = field(default_factory=list)  # several names or globs instead of `model`
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class ExportRun:
    """Everything that `export.py` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)  # what int8 is calibrated and judged on
    weights: str | None = None
    format: Any = "onnx"  # one, or a list of them; see docs/export.md
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)


RUNS: dict[str, type] = {
    "train": TrainRun,
    "eval": EvalRun,
    "benchmark": BenchmarkRun,
    "export": ExportRun,
}


class RegistrySource(ConfigSource):
    """Serves `model/<name>` for every registered name, so that a model needs no YAML.

    Any name is served; `create_model` says which are the nearest when there is none.
    """

    @staticmethod
    def scheme() -> str:
        return "registry"

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.removesuffix(".yaml").removeprefix("model/")
        return ConfigResult(
            provider=self.provider,
            path=f"registry://{name}",
            config=OmegaConf.create({"name": name}),
            header={"package": "model"},
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "model")

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith("model/")

    def list(self, config_path: str, results_filter: ObjectType | None) -> "list[str]":
        if config_path == "model" and results_filter is not ObjectType.GROUP:
            return registry.list_models()
        return ["model"] if config_path == "" else []


@functools.cache
def _set_up() -> None:
    Plugins.instance().register(RegistrySource)
    store = ConfigStore.instance()
    for name, schema in RUNS.items():
        store.store(name=f"{name}_schema", node=_open_dictionaries(OmegaConf.structured(schema)))


def _open_dictionaries(cfg: DictConfig) -> DictConfig:
    """Let the dictionaries of a schema take new keys: `model.kwargs.depth=2`, not with a plus."""
    for group in cfg.values():
        for key in group if isinstance(group, DictConfig) else ():
            if isinstance(group._get_node(key), DictConfig):
                OmegaConf.set_struct(group[key], False)
    return cfg


def compose(run: str, overrides: list[str] | None = None) -> DictConfig:
    """Compose the configuration of an entry point as its command line would, and check it.

    Args:
        run: `"train"`, `"eval"`, `"benchmark"` or `"export"`.
        overrides: What would stand on the command line.

    Raises:
        BadInput: An unknown key or group, or a value of another type.
        UnknownModel: `model.name` is not registered.
    """
    _set_up()
    overrides = overrides or []
    _check_keys(run, overrides)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(run, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(_one_line(error)) from error
    check_names(cfg)
    return cfg


def check_names(cfg: DictConfig) -> None:
    """Raise `UnknownModel` unless the model that `cfg` names exists, and its encoder."""
    if not OmegaConf.is_missing(cfg.model, "name") and not cfg.model.name.startswith("timm/"):
        registry.get_spec(cfg.model.name)
    encoder = cfg.model.encoder
    if encoder is not None and not encoder.startswith("timm/"):
        registry.get_spec(encoder)


def model_arguments(model: DictConfig) -> dict[str, Any]:
    """Return the arguments of `zoo.create_model` that differ from their defaults, and the name."""
    plain: Any = OmegaConf.to_container(model, resolve=True)
    extra = plain.pop("kwargs")
    unset = {entry.name: entry.default for entry in fields(ModelConfig)}
    return {key: value for key, value in plain.items() if value != unset[key]} | extra


def entry_point(run: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make `task(cfg)` the main function of a script: Hydra in front, one line for an error."""

    def wrap(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            try:  # inside Hydra, which would print a traceback
                check_names(cfg)
                return task(cfg)
            except ZooError as error:
                sys.exit(f"error: {error}")

        def main() -> None:
            if sys.version_info >= (3, 14):
                sys.exit("Hydra's command line does not run on Python 3.14; use 3.11 to 3.13")
            _set_up()
            asked = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
            plain = len(asked) == len(sys.argv) - 1
            try:
                if plain:  # no Hydra flag: what is wrong is said before Hydra starts
                    compose(run, asked)
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=run)(guarded)()
            except ZooError as error:
                sys.exit(f"error: {error}")

        return main

    return wrap


def _known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass; a dictionary ends with `.*`."""
    for entry in fields(schema):
        key = prefix + entry.name
        yield key
        if is_dataclass(entry.type):
            yield from _known_keys(entry.type, key + ".")  # type: ignore[arg-type]
        elif str(entry.type).startswith("dict"):
            yield key + ".*"


def _check_keys(run: str, overrides: list[str]) -> None:
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise BadInput(_one_line(error)) from error
    known = set(_known_keys(RUNS[run]))
    names = known | {"experiment"}
    for override in parsed:
        key = override.key_or_group.split("@")[0]
        if key in names or key.startswith("hydra") or f"{key.rsplit('.', 1)[0]}.*" in known:
            continue
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        leaf = [name for name in sorted(names) if name.split(".")[-1] == key.split(".")[-1]]
        hint = f"; did you mean {(leaf or near)[0]!r}?" if leaf or near else ""
        raise BadInput(f"unknown key {key!r} for {run}.py{hint}")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) == 1 and error.__cause__ is not None:  # Hydra says where, OmegaConf what
        lines.append(_one_line(error.__cause__))
    return " ".join(lines[:2]) if lines else type(error).__name__
