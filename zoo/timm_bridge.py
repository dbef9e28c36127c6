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
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from zoo import registry
from zoo.build import build_backbone
from zoo.errors import BadInput

PREFIX = "zoo_"

# Arguments that timm's factory adds to those of the model. They are dropped: weights and their
# description come from our facts, and feature pyramids from zoo.backbone.
_TIMM_ONLY = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "feature_cls", "feature_cfg")

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
    """Return the size of the last feature map; with a class token, that of the row of tokens."""
    if spec.capabilities.get("class_token", False):
        return 1, 1 + (height // stride) * (width // stride)
    return -(-height // stride), -(-width // stride)


class UnknownArgument(BadInput, TypeError):
    """An argument that a model does not have; code written for timm expects a TypeError."""


def _entry_point(spec: registry.ModelSpec) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        for key in _TIMM_ONLY:
            kwargs.pop(key, None)
        try:
            with contextlib.nullcontext() if device is None else torch.device(device):
                model = build_backbone(spec, pretrained, **kwargs).to(device, dtype)
        except BadInput as error:
            if kwargs.keys() <= _arguments(spec.name):
                raise
            raise UnknownArgument(str(error)) from error
        _keep_as_buffers(model)
        cfg = default_cfgs[build.__name__].default.to_dict()
        cfg["architecture"] = build.__name__
        model.__dict__.update(pretrained_cfg=cfg, default_cfg=cfg)
        return model

    build.__name__ = build.__qualname__ = bridged_name(spec.name)
    build.__module__ = __name__
    return build


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
