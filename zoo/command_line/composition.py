"""Compose the settings of a command from `zoo/configs`, the command line and the dataclasses.

Hydra merges the files of `zoo/configs` with the settings that the user gave, checked against the
dataclasses of `zoo.settings`. One addition: the group `model` is filled from the registry, so that
`model=<any name>` and `model=timm/<any name>` need no YAML file.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from zoo import registry
from zoo.command_line import overrides as override_words
from zoo.command_line import sweeps
from zoo.command_line.keys import CONFIGS, FREE_KEYS
from zoo.errors import BadInput, first_line
from zoo.progress import phase
from zoo.settings import RUNS


def run(command: str, overrides: Sequence[str] = ()) -> Any:
    """Run a command in this process and return its result.

    Args:
        command: `"train"`, `"eval"`, `"benchmark"` or `"export"`.
        overrides: Settings as on the command line.

    Raises:
        ZooError: A setting cannot work, or the command failed.
    """
    if command == "train" and sweeps.is_sweep(overrides):
        return sweeps.run(overrides, lambda words: parse("train", words))
    return start(command, *parse(command, overrides))


def start(command: str, settings: Any, explicit: dict[str, Any]) -> Any:
    """Run a command with composed settings and return its result."""
    with phase(f"{command}: loading PyTorch"):
        module = importlib.import_module(f"zoo.commands.{command.replace('-', '_')}")
    return module.run(settings, explicit)


def parse(command: str, overrides: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """Return the settings of a command as its dataclass, and the keys that the user set.

    Raises:
        BadInput: An unknown key, a value of another type, or a required key that is not set.
        UnknownModel: `model.name` is not registered.
    """
    words = override_words.read(command, overrides)
    return plain(command, _compose(command, words), words)


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the settings of a command as its command line would, and check them.

    Raises:
        BadInput: An unknown key or group, or a value of another type.
        UnknownModel: `model.name` is not registered.
    """
    cfg = _compose(command, override_words.read(command, overrides))
    check_names(cfg)
    return cfg


def plain(command: str, cfg: DictConfig, words: Iterable[str]) -> tuple[Any, dict[str, Any]]:
    """Convert composed settings to a dataclass; also return the keys that the user set.

    Args:
        command: The command whose dataclass has the defaults.
        cfg: The composed settings.
        words: The settings that the user gave, in Hydra's grammar.
    """
    try:
        check_names(cfg)
        settings: Any = OmegaConf.to_object(cfg)
        explicit = explicit_values(command, cfg, words)
    except MissingMandatoryValue as error:
        raise BadInput(f"{error.full_key} is not set; give {error.full_key}=<value>") from error
    except OmegaConfBaseException as error:
        raise BadInput(one_line(error)) from error
    for key, value in _leaves(dataclasses.asdict(settings)):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{key}={value} must be a finite number")
    return settings, explicit


def check_names(cfg: DictConfig) -> None:
    """Raise `UnknownModel` unless the requested model and its encoder exist."""
    for name in (cfg.model.name, cfg.model.encoder):
        if name is not None and not registry.is_timm(name):
            registry.get_spec(name)


def explicit_values(command: str, cfg: DictConfig, words: Iterable[str]) -> dict[str, Any]:
    """Return the dotted keys that the user set, with the values they have in `cfg`.

    Args:
        command: The command whose dataclass has the defaults.
        cfg: The composed settings.
        words: In Hydra's grammar. `model=<name>` sets `model.name`; any other group sets the keys
            that it changed.
    """
    values = _flat(OmegaConf.to_container(cfg, resolve=True))
    defaults = _flat(OmegaConf.to_container(OmegaConf.structured(RUNS[command])))
    keys: set[str] = set()
    for word in words:
        key = override_words.parse(word).key_or_group.split("@")[0]
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
def register() -> None:
    """Register the source of models and the schema of each command with Hydra."""
    Plugins.instance().register(RegistrySource)
    store = ConfigStore.instance()
    for name, schema in RUNS.items():
        cfg = OmegaConf.structured(schema)
        for key in FREE_KEYS:  # `model.kwargs.depth=2` without a plus sign
            if (group := OmegaConf.select(cfg, key)) is not None:
                OmegaConf.set_struct(group, False)
        store.store(name=f"{name}_schema", node=cfg)


def _compose(command: str, words: Sequence[str]) -> DictConfig:
    register()
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose(command, list(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(one_line(error)) from error


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries and lists, with the key of each."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _leaves(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry, key)
    else:
        yield key, value


def _flat(groups: Any) -> dict[str, Any]:
    """Return nested settings as dotted keys; dictionaries inside a group stay whole."""
    flat: dict[str, Any] = {}
    for name, value in groups.items():
        entries = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": entry for key, entry in entries.items()} or {name: value}
    return flat


def one_line(error: BaseException) -> str:
    """Return what Hydra or OmegaConf says, with the key and without their internal names."""
    while error.__cause__ is not None and isinstance(
        error.__cause__, HydraException | OmegaConfBaseException
    ):
        error = error.__cause__  # the outer ones repeat the inner one
    key = getattr(error, "full_key", None)
    return f"{key}: {first_line(error)}" if key else first_line(error)
