"""Registers every backbone of the package with timm: `timm.create_model("zoo_<name>")`.

    import zoo.timm_bridge
    timm.create_model("zoo_efficientformer_l1", features_only=True)

Libraries that build encoders through timm (segmentation_models_pytorch, detectors, Hugging Face)
accept our models by these names. The prefix distinguishes them from timm's own models.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from zoo import registry
from zoo.build import build_backbone
from zoo.errors import BadInput, BadWeights
from zoo.fetch import local_file
from zoo.hub import BRIDGED, WEIGHTS
from zoo.keys import convert_keys, recognise

PREFIX = BRIDGED

# Arguments of timm's feature pyramids, which are not those of zoo.backbone.
_NO_EFFECT = ("feature_cls", "feature_cfg")
default_cfgs: dict[str, Any] = {}


def bridged_name(name: str) -> str:
    """Return the name of a model in timm."""
    return PREFIX + name


@functools.cache
def _traits(family: str) -> dict[str, Any]:
    """Return properties that the variants of a family share, read from the first variant.

    Building all variants would take seconds; their differences are in the facts.
    """
    name = next(filter(registry.is_packaged, registry.list_models(family=family)))
    with torch.device("meta"):
        model = registry.get_spec(name).builder()()
    return {
        "stride": model.feature_info[-1]["reduction"],
        "first_conv": model.first_conv_name(),
        "classifier": model.classifier_names(),
    }


def _default_cfg(spec: registry.ModelSpec) -> dict[str, Any]:
    """Return the pretrained configuration that timm keeps for a model."""
    traits, image = dict(_traits(spec.family)), spec.facts["input"]
    _, height, width = image["size"]
    stride = traits.pop("stride")
    stride = spec.facts.get("reduction", stride)
    traits["first_conv"] = spec.facts.get("first_conv", traits["first_conv"])
    traits["classifier"] = tuple(spec.facts.get("classifiers", traits["classifier"]))
    return {
        **traits,
        "input_size": tuple(image["size"]),
        "pool_size": _pool_size(height, width, stride, spec),
        "num_classes": spec.num_classes,
        "mean": tuple(image["mean"]),
        "std": tuple(image["std"]),
        "interpolation": image["interpolation"],
        "crop_pct": image["crop_pct"],
        "fixed_input_size": not (spec.capabilities.get("dynamic_size") or "multiple" in image),
        "license": spec.facts["code"]["licence"],
        "paper_ids": f"arXiv:{spec.facts['paper']['arxiv']}",
        "paper_name": spec.facts["paper"]["title"],
        "origin_url": spec.facts["code"]["url"],
    }


def _pool_size(height: int, width: int, stride: int, spec: registry.ModelSpec) -> tuple[int, int]:
    """Return the size of the last feature map; for a row of tokens, 1 and their number."""
    if "pool_size" in spec.facts:
        rows, columns = spec.facts["pool_size"]
        return rows, columns
    if spec.capabilities.get("class_token", False):
        return 1, 1 + (height // stride) * (width // stride)
    return -(-height // stride), -(-width // stride)


class UnknownArgument(BadInput, TypeError):
    """An argument that a model does not have; code written for timm expects a TypeError."""


def _entry_point(spec: registry.ModelSpec) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        for key in _NO_EFFECT:
            if kwargs.pop(key, None) is not None:
                raise UnknownArgument(f"{key} has no effect on {build.__name__}; leave it out")
        tag = pretrained_cfg if isinstance(pretrained_cfg, str) else ""
        chosen = registry.get_spec(f"{spec.name}.{tag}") if tag else spec
        given = _given_cfg(pretrained_cfg) | (pretrained_cfg_overlay or {})
        weights = _weights_in(given, cache_dir) if pretrained else None
        kwargs.pop("pretrained_model_args", None)  # timm has merged them with the others
        if given.get("num_classes", chosen.num_classes) != chosen.num_classes:
            kwargs.setdefault("num_classes", given["num_classes"])
        try:
            with contextlib.nullcontext() if device is None else torch.device(device):
                model = build_backbone(
                    chosen,
                    pretrained and weights is None,
                    checkpoint_path=weights,
                    cache_dir=cache_dir,
                    **kwargs,
                ).to(device, dtype)
        except BadInput as error:
            if kwargs.keys() <= _arguments(spec.name):
                raise
            raise UnknownArgument(str(error)) from error
        _keep_as_buffers(model)
        model.register_load_state_dict_pre_hook(_convert_published)
        cfg = default_cfgs[build.__name__].default.to_dict()
        cfg |= {**_default_cfg(chosen), "tag": tag} if tag else {}
        cfg |= {key: value for key, value in given.items() if key not in ("state_dict", "tag")}
        cfg["architecture"] = build.__name__
        model.__dict__.update(pretrained_cfg=cfg, default_cfg=cfg)
        return model

    build.__name__ = build.__qualname__ = bridged_name(spec.name)
    build.__module__ = __name__
    return build


def _given_cfg(cfg: Any) -> dict[str, Any]:
    """Return the entries of a pretrained configuration that was passed to timm."""
    if cfg is None or isinstance(cfg, str):
        return {}
    entries = cfg if isinstance(cfg, dict) else cfg.to_dict()
    return {key: value for key, value in entries.items() if value is not None}


def _weights_in(cfg: Mapping[str, Any], cache_dir: str | None) -> Any:
    """Return the weights that a pretrained configuration names, by timm's precedence.

    Returns:
        A state dict, a file or an address; None if it names none.
    """
    file, hub = cfg.get("file"), cfg.get("hf_hub_id")
    if cfg.get("state_dict"):
        return cfg["state_dict"]
    if file and cfg.get("source") == "local-dir":
        found = [path for name in WEIGHTS if (path := Path(file) / name).is_file()]
        if not found:
            raise BadWeights(f"{file} contains neither {' nor '.join(WEIGHTS)}")
        return found[0]
    if file:
        return file
    if hub:
        names = [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else list(WEIGHTS)
        hub, _, revision = str(hub).partition("@")
        if revision:
            raise BadWeights(
                f"hf_hub_id={hub}@{revision}: revisions are not supported; leave it out"
            )
        return _first_reachable([f"hf:{hub}/{name}" for name in names], cache_dir)
    return cfg.get("url") or None


def _first_reachable(addresses: list[str], cache_dir: str | None) -> Path:
    failed = None
    for address in addresses:
        try:
            return local_file(address, cache_dir=cache_dir)
        except BadWeights as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _convert_published(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let `load_state_dict` accept published names, as timm loads files without asking us."""
    own = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    partial = getattr(module, "is_partial", False)
    if not partial and recognise(own, module.key_styles) is None:
        return
    for key in own:
        del state[prefix + key]
    state.update({prefix + key: t for key, t in convert_keys(own, module).items()})


def _arguments(name: str) -> set[str]:
    """Return the arguments of `build_backbone` and of the model."""
    builders = (build_backbone, registry.get_spec(name).builder())
    return {argument for builder in builders for argument in inspect.signature(builder).parameters}


def _keep_as_buffers(model: nn.Module) -> None:
    """Replace parameters that are never trained by buffers of the same names.

    These are tables of sines and random features. Papers and our facts count them as parameters,
    but code written for timm expects every parameter to have a gradient.
    """
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            if not tensor.requires_grad:
                delattr(module, name)
                module.register_buffer(name, tensor.detach())


def _register_all() -> None:
    for name in filter(registry.is_packaged, registry.list_models(task="classification")):
        spec = registry.get_spec(name)
        if "status" in spec.facts:  # a family in progress
            continue
        known_as = bridged_name(name)
        if timm.is_model(known_as):
            raise ValueError(f"timm already has a model {known_as!r}; it would be overwritten")
        default_cfgs.update(generate_default_cfgs({known_as: _default_cfg(spec)}))
        build = _entry_point(spec)
        setattr(sys.modules[__name__], known_as, build)
        register_model(build)


_register_all()
