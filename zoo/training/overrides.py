"""What the command line asked for, as opposed to what is there by default.

A run that is continued, or a checkpoint that is evaluated, brings its own configuration. Only what
was asked for by name stands against it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

Flat = dict[str, Any]


def from_command_line() -> list[str]:
    """Return the overrides of the running job; none outside an entry point."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def asked(cfg: DictConfig, overrides: Sequence[str], schema: type) -> Flat:
    """Return the dotted keys that `overrides` gave, with the values they have in `cfg`.

    Args:
        cfg: The composed configuration.
        overrides: As on the command line. `model=<name>` asks for `model.name`; another group asks
            for whatever it changed.
        schema: The dataclass of the run, which has the defaults.
    """
    values, before = flat(cfg), flat(OmegaConf.structured(schema))
    keys: set[str] = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group.split("@")[0]
        if key == "model":
            keys.add("model.name")
        elif key in ("data", "experiment"):
            inside = f"{key}." if key == "data" else ""
            changed = (k for k in values if k.startswith(inside) and values[k] != before.get(k))
            keys |= {*changed, *(["data.name"] if key == "data" else [])}
        else:
            inside, around = f"{key}.", tuple(f"{k}." for k in values)
            keys |= {k for k in values if k == key or k.startswith(inside)}
            keys |= {k[:-1] for k in around if key.startswith(k)}  # one entry of a dictionary
    return {key: values[key] for key in sorted(keys) if key in values}


def flat(cfg: Any) -> Flat:
    """Return a configuration as dotted keys; dictionaries inside a group stay whole."""
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    return dict(_walk(plain, ""))


def _walk(node: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and not prefix:
            yield from _walk(value, f"{key}.")
        else:
            yield prefix + key, value
