"""A pytest plugin that turns timm's own model tests onto our models, through `zoo.timm_bridge`.

timm's file asks `timm.list_models` what to test while it is being imported. Loaded before it
(`-p zoo_timm_plugin`), this answers with the names in ZOO_OUTSIDE_MODELS, and with none where
published weights would be fetched. No file of timm is changed.
"""

import fnmatch
import os

import timm

import zoo.timm_bridge as bridge

NAMES = os.environ["ZOO_OUTSIDE_MODELS"].split(",")


def _matches(name: str, globs: str | list[str]) -> bool:
    globs = [globs] if isinstance(globs, str) else globs
    return any(fnmatch.fnmatch(name, glob) for glob in globs)


def _ours(filter="", module="", pretrained=False, exclude_filters="", **kwargs) -> list[str]:
    """Answer as `timm.list_models` would if there were no models but ours, without weights.

    `module` picks what has `forward_intermediates`, which all of ours have.
    """
    return [
        name
        for name in NAMES
        if not pretrained
        and (not filter or _matches(name, filter))
        and not _matches(name, exclude_filters)
    ]


for _name in NAMES:
    assert hasattr(bridge, _name), f"{_name} is none of ours"
timm.list_models = _ours
timm.list_pretrained = lambda *args, **kwargs: []
