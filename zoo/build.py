"""Build one of the package's backbones: check arguments, construct it, load published weights."""

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from zoo import hub_files
from zoo.backbone import Backbone, FeatureExtractor
from zoo.blocks.sizes import whole_number
from zoo.errors import BadInput, BadWeights, first_line, unknown_value
from zoo.fine_tuning import load_to_fine_tune, say
from zoo.hub import WEIGHTS
from zoo.narrowing import apply_widths, saved_widths
from zoo.registry import ModelSpec
from zoo.weights import opened, read_source, state_for

RATES = ("drop_rate", "drop_path_rate")


def build_backbone(
    spec: ModelSpec,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    checkpoint_path: str | os.PathLike | Mapping[str, Any] | None = None,
    cache_dir: str | None = None,
    widths: Mapping[str, int] | Sequence[int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a registered model; arguments and errors are those of `zoo.create_model`.

    Args:
        spec: Specification of the model.
        cache_dir: Folder of downloaded files; None for that of torch.hub.
        **arguments: Arguments of the model; None keeps the default.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    given.setdefault("in_chans", spec.in_chans)
    if spec.tag and "classes" in spec.weights[0]:
        given.setdefault("num_classes", spec.num_classes)
    check_values(given)
    build = spec.builder()
    known = inspect.signature(build).parameters
    if "widths" in known and widths is not None and not isinstance(widths, Mapping):
        given["widths"], widths = widths, None  # WaveMix's own argument, a sequence
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        given = {
            key: value for key, value in given.items() if key in known or key not in RATES or value
        }
        others = [key for key in given if key not in known]
        if "img_size" in others:
            raise BadInput(f"{spec.name} has no parameters that depend on img_size; leave it out")
        if others:
            where = f" of {spec.name}"
            raise BadInput(unknown_value("argument", others[0], sorted(known), where=where))
    if features_only and "dense" in known:
        given.setdefault("dense", True)  # the family's public dense code computes differently
    model = build(**given)
    content, named = ({}, "") if checkpoint_path is None else opened(checkpoint_path)
    cut: Any = saved_widths(content) if widths is None else widths
    if cut:
        apply_widths(model, cut)
    sizes = {
        "new_classes": arguments.get("num_classes") is not None,
        "new_channels": arguments.get("in_chans") is not None,
    }
    if pretrained:
        _load_published(model, spec, **sizes, features_only=features_only, cache_dir=cache_dir)
    if features_only:
        model = FeatureExtractor(model, out_indices)
    if checkpoint_path is not None:
        load_to_fine_tune(model, state_for(model, content, named), named, **sizes)
    return model


def check_values(arguments: dict[str, Any]) -> None:
    """Raise `BadInput` for rates outside 0..1 and counts that are not whole numbers."""
    for key in RATES:
        rate = arguments.get(key, 0.0)
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise BadInput(f"{key}={rate!r} must be at least 0 and less than 1")
    for key, least in (("in_chans", 1), ("num_classes", 0)):
        if key in arguments:
            whole_number(arguments[key], key, least)


def build_timm(
    bare: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | os.PathLike | Mapping[str, Any] | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **given: Any,
) -> nn.Module:
    """Build a model of timm, with weights from a file as `build_backbone` takes them.

    Args:
        bare: timm's name of the model.
        **given: Arguments of `timm.create_model`.

    Raises:
        BadInput: timm does not build it with these arguments.
        BadWeights: The weights cannot be read, or do not fit.
    """
    features: dict[str, Any] = {"features_only": True} if features_only else {}
    features |= {} if out_indices is None else {"out_indices": out_indices}
    if checkpoint_path is None:
        return _timm(bare, pretrained=pretrained, **features, **given)
    whole = _timm(bare, pretrained=pretrained, **given)
    content, named = opened(checkpoint_path)
    sizes = {
        "new_classes": "num_classes" in given or features_only,
        "new_channels": "in_chans" in given,
    }
    load_to_fine_tune(whole, state_for(whole, content, named), named, **sizes)
    if not features_only:
        return whole
    weights = {"state_dict": whole.state_dict(), "first_conv": None}  # has the channels already
    return _timm(bare, pretrained=True, pretrained_cfg_overlay=weights, **features, **given)


def _timm(bare: str, **given: Any) -> nn.Module:
    if given.get("pretrained") and "pretrained_cfg_overlay" not in given:
        _fetch_for_timm(bare)
    try:
        return timm.create_model(bare, **given)
    except (BadInput, BadWeights):
        raise
    except (TypeError, RuntimeError, AssertionError) as error:
        raise BadInput(f"timm cannot build {bare!r}: {first_line(error)}") from error


def _fetch_for_timm(bare: str) -> None:
    """Put the weights of a model of timm into the hub's cache, from which timm takes them.

    timm itself tries again and again for a minute, and ends in an error of its HTTP library.

    Raises:
        BadWeights: The hub does not answer, or refuses.
    """
    cfg = timm.models.get_pretrained_cfg(bare)
    if cfg is None or not cfg.hf_hub_id or cfg.hf_hub_filename:
        return
    repository = cfg.hf_hub_id
    try:
        hub_files.fetch(repository, WEIGHTS[0])
    except hub_files.NoSuchFile:
        return  # timm knows older names
    except hub_files.HubProblem as error:
        raise BadWeights(
            f"the weights of timm/{bare} cannot be fetched: {str(error).rstrip('.')}; fetch"
            f" {WEIGHTS[0]} of https://huggingface.co/{repository} elsewhere, and give"
            " checkpoint_path (on the command line model.checkpoint_path)"
        ) from error


def published_entry(spec: ModelSpec) -> dict[str, Any]:
    """Return the checkpoint that `pretrained=True` loads.

    Raises:
        BadWeights: None can be fetched; the message has the pages that offer one.
    """
    entry = next((entry for entry in spec.weights if "url" in entry), None)
    if entry is not None:
        return entry
    pages = " or ".join(entry["page"] for entry in spec.weights if "page" in entry)
    if pages:
        raise BadWeights(
            f"{spec.full_name} has no weights that a program can download; fetch them from {pages}"
            " and give checkpoint_path (on the command line model.checkpoint_path)"
        )
    raise BadWeights(
        f"{spec.full_name} has no published weights: its authors offer none; leave pretrained out"
        " and train it, or give checkpoint_path"
    )


def fetch_published(
    spec: ModelSpec, entry: dict[str, Any], cache_dir: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Fetch a published checkpoint, from a mirror if its own address cannot be reached.

    Args:
        entry: One of `spec.weights`.
        cache_dir: Folder of downloaded files; None for that of torch.hub.

    Returns:
        The path and the content of the file.

    Raises:
        BadWeights: No address can be fetched, or the file has another checksum.
    """
    failed = None
    for place in ({**entry, "mirrors": ()}, *entry.get("mirrors", ())):
        sums = {key: place[key] for key in ("sha256", "git_sha1") if key in place}
        try:
            return read_source(place["url"], **sums, cache_dir=cache_dir)
        except BadWeights as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _load_published(
    model: Backbone,
    spec: ModelSpec,
    *,
    new_classes: bool,
    new_channels: bool,
    features_only: bool,
    cache_dir: str | None,
) -> None:
    """Load the first published checkpoint that has an address, adapted to classes and channels."""
    entry = published_entry(spec)
    if not entry.get("head", True) and not new_classes and not features_only:
        raise BadWeights(
            f"the published weights of {spec.full_name} have no classifier; give num_classes for a"
            " new one, or features_only=True"
        )
    warn_of_licence(spec, entry)
    _, content = fetch_published(spec, entry, cache_dir)
    named = f"the published checkpoint of {spec.full_name}"
    state = state_for(model, content, named, entry.get("branch"))
    load_to_fine_tune(
        model,
        state,
        named,
        new_classes=new_classes or not entry.get("head", True),
        new_channels=new_channels,
    )


@functools.cache
def _say_once(line: str) -> None:
    say(line)


def warn_of_licence(spec: ModelSpec, entry: dict[str, Any]) -> None:
    """Say once per process that the authors of weights state no licence."""
    if str(entry.get("licence", "none")).startswith("none"):
        _say_once(
            f"warning: the authors of {spec.full_name} state no licence for these weights; ask them"
            f" before you publish or sell what you make with them ({spec.facts['code']['url']})"
        )
