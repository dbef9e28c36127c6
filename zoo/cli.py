"""The command line: Hydra composes a command's settings, and an error ends it with one line.

`train.py model=... data=...` calls `main("train")`; from Python, `run("train", ["model=..."])` does
the same. Hydra merges `configs/` with the overrides, checked against the dataclasses of
`zoo.settings`. Two additions: the group `model` is filled from the registry (`model=<any name>` and
`model=timm/<any name>` need no YAML file), and a mistake names the nearest key or model before
anything else starts. Nothing in the package imports this module.
"""

import difflib
import functools
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from zoo import registry
from zoo.errors import BadInput, ZooError, unknown_value
from zoo.settings import RUNS

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FREE_KEYS = ("model.kwargs", "train.optimizer_args", "train.scheduler_args", "train.loss_args")


def main(command: str) -> None:
    """Run a command with the arguments of this process; an error is one line and exit code 1."""
    if sys.version_info >= (3, 14):
        sys.exit("Hydra's command line does not run on Python 3.14; use 3.11 to 3.13")
    _register()
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]

    def task(cfg: DictConfig) -> Any:
        try:  # Hydra would print a traceback
            return _start(command, *_plain(command, cfg, HydraConfig.get().overrides.task))
        except ZooError as error:
            sys.exit(f"error: {error}")

    try:
        if len(overrides) == len(sys.argv) - 1:  # no Hydra flag: check before Hydra starts
            compose(command, overrides)
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(task)()
    except ZooError as error:
        sys.exit(f"error: {error}")


def run(command: str, overrides: Sequence[str] = ()) -> Any:
    """Run a command in this process and return its result.

    Args:
        command: `"train"`, `"eval"`, `"benchmark"` or `"export"`.
        overrides: Arguments as on the command line.

    Raises:
        ZooError: A setting cannot work, or the command failed.
    """
    return _start(command, *parse(command, overrides))


def parse(command: str, overrides: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """Return the settings of a command as its dataclass, and the keys that the user set.

    Raises:
        BadInput: An unknown key, a value of another type, or a required key that is not set.
        UnknownModel: `model.name` is not registered.
    """
    return _plain(command, compose(command, overrides), overrides)


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the settings of a command as its command line would, and check them.

    Raises:
        BadInput: An unknown key or group, or a value of another type.
        UnknownModel: `model.name` is not registered.
    """
    _register()
    _check_keys(command, overrides)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(command, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(_one_line(error)) from error
    check_names(cfg)
    return cfg


def check_names(cfg: DictConfig) -> None:
    """Raise `UnknownModel` unless the requested model and its encoder exist."""
    for name in (cfg.model.name, cfg.model.encoder):
        if name is not None and not registry.is_timm(name):
            registry.get_spec(name)


def explicit_values(command: str, cfg: DictConfig, overrides: Iterable[str]) -> dict[str, Any]:
    """Return the dotted keys that the user set, with the values they have in `cfg`.

    Args:
        command: The command whose dataclass has the defaults.
        cfg: The composed settings.
        overrides: As on the command line. `model=<name>` sets `model.name`; any other group sets
            the keys that it changed.
    """
    values = _flat(OmegaConf.to_container(cfg))
    defaults = _flat(OmegaConf.to_container(OmegaConf.structured(RUNS[command])))
    keys: set[str] = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group.split("@")[0]
        if key == "model":
            keys.add("model.name")
        elif key in ("data", "experiment"):
            group = "data." if key == "data" else ""
            keys |= {k for k in values if k.startswith(group) and values[k] != defaults.get(k)}
            keys |= {"data.name"} if key == "data" else set()
        else:
            keys |= {k for k in values if k == key or k.startswith(f"{key}.")}
            keys |= {k for k in values if key.startswith(f"{k}.")}  # one entry of a dictionary
    return {key: values[key] for key in sorted(keys & values.keys())}


def _plain(command: str, cfg: DictConfig, overrides: Iterable[str]) -> tuple[Any, dict[str, Any]]:
    """Convert composed settings to a dataclass; also return the keys that the user set."""
    check_names(cfg)
    try:
        return OmegaConf.to_object(cfg), explicit_values(command, cfg, overrides)
    except MissingMandatoryValue as error:
        raise BadInput(f"{error.full_key} is not set; give {error.full_key}=<value>") from error


def _start(command: str, settings: Any, explicit: dict[str, Any]) -> Any:
    return importlib.import_module(f"zoo.commands.{command}").run(settings, explicit)


class RegistrySource(ConfigSource):
    """Serves `model/<name>` for every name, so that a model needs no YAML file.

    An unknown name is served too: `check_names` reports it with the nearest one.
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
def _register() -> None:
    """Register the source of models and the schema of each command with Hydra."""
    Plugins.instance().register(RegistrySource)
    store = ConfigStore.instance()
    for name, schema in RUNS.items():
        cfg = OmegaConf.structured(schema)
        for key in FREE_KEYS:  # `model.kwargs.depth=2` without a plus sign
            if (group := OmegaConf.select(cfg, key)) is not None:
                OmegaConf.set_struct(group, False)
        store.store(name=f"{name}_schema", node=cfg)


def _flat(groups: Any) -> dict[str, Any]:
    """Return nested settings as dotted keys; dictionaries inside a group stay whole."""
    flat: dict[str, Any] = {}
    for name, value in groups.items():
        entries = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": entry for key, entry in entries.items()} or {name: value}
    return flat


def _check_keys(command: str, overrides: Sequence[str]) -> None:
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise BadInput(_one_line(error)) from error
    names = {*_known_keys(RUNS[command]), "experiment"}
    for override in parsed:
        key = override.key_or_group.split("@")[0]
        if key in names or key.startswith("hydra") or key.rsplit(".", 1)[0] in FREE_KEYS:
            continue
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        leaf = [name for name in sorted(names) if name.split(".")[-1] == key.split(".")[-1]]
        nearest = next(iter(leaf or near), None)
        script = f"{command}.py"
        raise BadInput(
            unknown_value(
                "key", key, (), where=f" of {script}", near=nearest, listed_by=f"{script} --help"
            )
        )


def _known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a dataclass."""
    for entry in fields(schema):
        key = prefix + entry.name
        yield key
        if is_dataclass(entry.type):
            yield from _known_keys(entry.type, key + ".")  # type: ignore[arg-type]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) == 1 and error.__cause__ is not None:  # Hydra names the key, OmegaConf the fault
        lines.append(_one_line(error.__cause__))
    return " ".join(lines[:2]) if lines else type(error).__name__
