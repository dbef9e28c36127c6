"""Published checkpoints of the facts load: by their public names, in every wrapper.

The public layouts are those of the records, and timm's own. Those of other variants of a family
follow from a record if the numbers in public names follow from those in ours. Variants of other
layouts are listed in `OWN_LAYOUTS` of tests/models/test_<family>.py, which tests their names.
"""

import ast
import fnmatch
import functools
import json
import re
from pathlib import Path

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
ALL_RECORDS = {file.stem: json.loads(file.read_text()) for file in sorted(RECORDS.glob("*.json"))}


def own_layouts(family: str) -> tuple[str, ...]:
    """Return the globs in `OWN_LAYOUTS` of a family's tests."""
    file = Path(__file__).parent / "models" / f"test_{family}.py"
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OWN_LAYOUTS":
            return ast.literal_eval(node.value)
    return ()


# Key styles without a record; tests/models/test_<family>.py derives them from another style.
OWN_STYLES = ("d-li14/mobilenetv2.pytorch", "youngwanLEE/vovnet-detectron2", "clovaai/c3_sinet")
OWN_STYLES += ("whai362/PVT (v2)",)
OWN_LAYOUTS = {
    family: own_layouts(family)
    for family in sorted({zoo.model_info(name)["family"] for name in FINISHED})
}


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return zoo.create_model(name, **kwargs)


def tensor(shape, dtype: str):
    """Return random values, or zeros of an integer type."""
    if not dtype.startswith("float"):
        return torch.zeros(shape, dtype=torch.int64)
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape, 1))) + 1


def of_record(name):
    return {key: tensor(shape, dtype) for key, shape, dtype in ALL_RECORDS[name]["state"]}


def shapes_of_record(name):
    rows = ALL_RECORDS[name]["state"]
    return {key: torch.empty(s, dtype=getattr(torch, d), device="meta") for key, s, d in rows}


def shapes_of_timm(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=1000).state_dict()


@functools.cache
def names_of(record: str) -> tuple[str, dict[str, str]]:
    """Return the key style of a record, and the public name of each of our tensors."""
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
    """Derive the public name of our `key` from the names of another variant."""
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
    """Return the i-th number of a public name: ours plus a constant, or a linear function."""
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
    """Return the records of a family in a key style."""
    return [
        record
        for record, entry in ALL_RECORDS.items()
        if zoo.model_info(entry["model"])["family"] == family and names_of(record)[0] == style
    ]


def layout(name: str, style: str):
    """Return the tensors of a checkpoint, on meta; None if no record tells its names."""
    if style == "timm" and timm.is_model(name):
        return shapes_of_timm(name)
    records = records_of(zoo.model_info(name)["family"], style)
    for record in records:
        if ALL_RECORDS[record]["model"] == name and not ALL_RECORDS[record]["kwargs"]:
            return shapes_of_record(record)
    known = {ours: public for record in records for ours, public in names_of(record)[1].items()}
    own = {k: t for k, t in on_meta(name).state_dict().items() if t.is_floating_point()}
    named = {public_name(key, known): tensor for key, tensor in own.items()}
    return named if None not in named and len(named) == len(own) else None


def follows(name: str, style: str) -> bool:
    if style in OWN_STYLES:
        return False
    patterns = OWN_LAYOUTS[zoo.model_info(name)["family"]]
    listed = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    return (style == "timm" and timm.is_model(name)) or not listed


def model_of(entry):
    return on_meta(entry["model"], **entry["kwargs"])


@pytest.mark.parametrize(("name", "style"), [p for p in PUBLISHED if follows(*p)])
def test_names_and_shapes_of_a_checkpoint_become_ours(name, style):
    state, model = layout(name, style), on_meta(name)
    assert recognise(state, model.key_styles).name == style
    assert misfits(convert_keys(state, model), model) == []


def test_own_layouts_are_of_published_variants_of_the_family():
    for family, patterns in OWN_LAYOUTS.items():
        names = [name for name, _ in PUBLISHED if zoo.model_info(name)["family"] == family]
        for pattern in patterns:
            assert fnmatch.filter(names, pattern), f"{family}: {pattern}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "style"),
    sorted({(zoo.model_info(name)["family"], s) for name, s in PUBLISHED if s not in OWN_STYLES}),
)
def test_every_wrapper_is_opened(family, style):
    """Every tensor of the model is replaced, and none comes from the other branch."""
    records = records_of(family, style)
    assert records, "no record has names of this style"
    record = min(records, key=lambda record: ALL_RECORDS[record]["params"])
    state = of_record(record)
    other = {key: torch.full_like(value, -7) for key, value in state.items()}
    boxes = wrapped(state) | {
        "net": {"net": state, "net_E": other},  # EMO and MobileMamba evaluate `net`
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
