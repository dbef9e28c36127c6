"""Published checkpoints that facts name, as they come: public names, wrapped in any way.

The public layouts are those of the records, and timm's own. Those of other variants of a family
follow from a record where the numbers in public names do so from those in ours.
"""

import fnmatch
import functools
import json
import re

import numpy as np
import pytest
import timm
import torch
from published import RECORDS, WRAPPERS, wrapped
from support import FINISHED

import zoo
from zoo.keys import convert_keys, misfits, recognise

PUBLISHED = sorted(
    {
        (name, entry["keys"])
        for name in FINISHED
        for entry in zoo.model_info(name).get("weights", [])
    }
)
# Layouts that do not follow from a record: public names count blocks through stages, or number
# layers that the record's variant has not. What names them stands in tests/models/test_<family>.py;
# a variant of the same family with a record is checked here.
OTHERWISE = (
    *("cct_14_7x2_*", "cct_7_7x2_224_sine"),  # a second layer in the tokeniser
    *("efficientformer_l3", "efficientformer_l7"),
    "efficientvmamba_base",
    *("lsnet_s*", "lsnet_b*"),  # a first stage with blocks
    "mobilemamba_b*",
    "simplenet_cifar_5m_extra_pool",
    "sret_*",  # position tables are turned; the records are of sret_t and sret_t_wo_slice
    *("t2t_vit_19", "t2t_vit_24", "t2t_vit_t_19", "t2t_vit_t_24"),
    "wavemix_*",
)
ALL_RECORDS = {file.stem: json.loads(file.read_text()) for file in sorted(RECORDS.glob("*.json"))}


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return zoo.create_model(name, **kwargs)


def tensor(shape, dtype: str):
    """Random values, or zeros where they are whole numbers."""
    if not dtype.startswith("float"):
        return torch.zeros(shape, dtype=torch.int64)
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape, 1))) + 1


def of_record(name):
    return {key: tensor(shape, dtype) for key, shape, dtype in ALL_RECORDS[name]["state"]}


def of_timm(name):
    with torch.device("meta"):
        public = timm.create_model(name, num_classes=1000).state_dict()
    return {key: tensor(t.shape, str(t.dtype)[6:]) for key, t in public.items()}


@functools.cache
def names_of(record: str) -> tuple[str, dict[str, str]]:
    """Return the style that a record is in, and the public name of each of our tensors."""
    entry = ALL_RECORDS[record]
    model = on_meta(entry["model"], **entry["kwargs"])
    rows = [(key, shape) for key, shape, dtype in entry["state"] if dtype.startswith("float")]
    state = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(rows)}
    style = recognise(state, model.key_styles)
    assert style is not None
    found = convert_keys(state, model)
    return style.name, {
        ours: rows[int(t.flatten()[0])][0] for ours, t in found.items() if t.numel()
    }


def numbers(key: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", key)))


def skeleton(key: str) -> str:
    return re.sub(r"\d+", "{}", key)


def public_name(key: str, known: dict[str, str]) -> str | None:
    """Return the public name of our `key`, from those of another variant."""
    if key in known:
        return known[key]
    alike = [(ours, public) for ours, public in known.items() if skeleton(ours) == skeleton(key)]
    for form in dict.fromkeys(skeleton(public) for _, public in alike):
        rows = [(numbers(o), numbers(p)) for o, p in alike if skeleton(p) == form]
        found = [number(i, numbers(key), rows) for i in range(form.count("{}"))]
        if None not in found:
            return form.format(*found)
    return None


def number(i: int, ours: tuple[int, ...], rows) -> int | None:
    """Return the i-th number of a public name: one of ours plus a constant, or a linear law."""
    for j in reversed(range(len(ours))):
        if len({public[i] - own[j] for own, public in rows}) == 1:
            return ours[j] + rows[0][1][i] - rows[0][0][j]
    places = np.array([[*own, 1] for own, _ in rows], float)
    values = np.array([public[i] for _, public in rows], float)
    law = np.linalg.lstsq(places, values, rcond=None)[0]
    fits = np.abs(places @ law - values).max() < 1e-6
    return round(np.array([*ours, 1]) @ law) if fits else None


@functools.cache
def records_of(family: str, style: str) -> list[str]:
    """Return the records of a family whose weights have the names of that style."""
    return [
        record
        for record, entry in ALL_RECORDS.items()
        if zoo.model_info(entry["model"])["family"] == family and names_of(record)[0] == style
    ]


def layout(name: str, style: str):
    """Return names and shapes of a checkpoint of a variant; None where they do not follow."""
    if style == "timm" and timm.is_model(name):
        return of_timm(name)
    records = records_of(zoo.model_info(name)["family"], style)
    for record in records:
        if ALL_RECORDS[record]["model"] == name and not ALL_RECORDS[record]["kwargs"]:
            return of_record(record)
    known = {ours: public for record in records for ours, public in names_of(record)[1].items()}
    own = {k: t for k, t in on_meta(name).state_dict().items() if t.is_floating_point()}
    named = {public_name(key, known): tensor for key, tensor in own.items()}
    return named if None not in named and len(named) == len(own) else None


def follows(name: str, style: str) -> bool:
    listed = any(fnmatch.fnmatch(name, pattern) for pattern in OTHERWISE)
    return (style == "timm" and timm.is_model(name)) or not listed


def model_of(entry):
    return on_meta(entry["model"], **entry["kwargs"])


@pytest.mark.parametrize(("name", "style"), [p for p in PUBLISHED if follows(*p)])
def test_names_and_shapes_of_a_checkpoint_become_ours(name, style):
    state, model = layout(name, style), on_meta(name)
    assert recognise(state, model.key_styles).name == style
    assert misfits(convert_keys({k: t.to("meta") for k, t in state.items()}, model), model) == []


def test_what_does_not_follow_is_published():
    for pattern in OTHERWISE:
        assert fnmatch.filter([name for name, _ in PUBLISHED], pattern), pattern


@pytest.mark.parametrize(
    ("family", "style"),
    sorted({(zoo.model_info(name)["family"], style) for name, style in PUBLISHED}),
)
def test_every_wrapper_is_opened(family, style):
    """Every tensor of the model is replaced, and none comes from the other branch."""
    records = records_of(family, style)
    assert records, "no record has names of this style"
    record = min(records, key=lambda record: ALL_RECORDS[record]["params"])
    state = of_record(record)
    other = {key: torch.full_like(value, -7) for key, value in state.items()}
    boxes = wrapped(state) | {
        "net": {"net": state, "net_E": other},  # EMO's and MobileMamba's; they evaluate `net`
        "twice": {"state_dict": {f"module.module.{key}": t for key, t in state.items()}},
    }
    assert boxes.keys() == {*WRAPPERS, "net", "twice"}
    want = convert_keys(dict(state), model_of(ALL_RECORDS[record]))
    model = model_of(ALL_RECORDS[record]).to_empty(device="cpu")
    for wrapper, box in boxes.items():
        for value in model.state_dict().values():
            value.fill_(torch.nan if value.is_floating_point() else 0)
        assert zoo.load_weights(model, box) == []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, want[key].reshape(value.shape)), (wrapper, key)
                assert value.isfinite().all(), (wrapper, key)
