"""Checkpoints: any wrapping, any damage; what does not fit is named, nothing runs or changes."""

import argparse
import io
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from support import fresh, shaken
from torch import nn
from torch.optim.swa_utils import AveragedModel

import zoo
from zoo.weights import read_checkpoint, read_state_dict, unwrap

NAME = "mobilenetv2_035"


@pytest.fixture(scope="module")
def state():
    return shaken(NAME).state_dict()


@pytest.fixture
def blank():
    return zoo.create_model(NAME)


def same(model, state) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "plain": lambda s: s,
    "timm": lambda s: {"epoch": 3, "arch": NAME, "state_dict": s, "optimizer": {"state": {}}},
    "averaged by timm": lambda s: {"state_dict": zeros(s), "state_dict_ema": s},
    "model": lambda s: {"model": s, "epoch": 1},
    "averaged": lambda s: {"model": zeros(s), "model_ema": s},
    "nested": lambda s: {"ema": {"state_dict": s}, "model": zeros(s)},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "loops": {}, "hparams": None},
    "several": lambda s: {"model": prefixed(s, "module._orig_mod.model.")},
    "backbone": lambda s: prefixed(s, "backbone."),
    "an ema that holds no weights": lambda s: {"ema": {"decay": 0.999}, "state_dict": s},
    "an ema that is none": lambda s: {"model_ema": None, "state_dict": s},
    "tensors of no name": lambda s: {"state_dict": {**s, 0: torch.zeros(1)}},
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "parameters": lambda s: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()
    },
    "half": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_in_what_wraps_them(wrapping, state, blank, tmp_path):
    content = WRAPPINGS[wrapping](state)
    torch.save(content, tmp_path / "file.pth")
    for source in (content, tmp_path / "file.pth", str(tmp_path / "file.pth")):
        zoo.load_weights(blank, zeros(state))
        assert zoo.load_weights(blank, source) == []
        if wrapping == "half":
            assert same(blank, {k: v.bfloat16().to(v.dtype) for k, v in state.items()})
        else:
            assert same(blank, {k: v for k, v in state.items() if "num_batches" not in k})


def test_torch_averages(state, blank):
    zoo.load_weights(blank, AveragedModel(shaken(NAME)).state_dict())
    assert same(blank, state)


def test_a_prefix_that_the_model_itself_has_stays(state):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = zoo.create_model(NAME)

    wrapper = Wrapper()
    zoo.load_weights(wrapper, prefixed(state, "model."))
    assert same(wrapper.model, state)
    zoo.load_weights(wrapper, {"state_dict": prefixed(state, "module.model.")})


def test_arguments_of_the_training_script_beside_the_weights(state, blank, tmp_path):
    args = argparse.Namespace(lr=0.1, model="x", scales=[1, 2])
    content = {"state_dict": state, "args": args, "best": np.float64(71.3), "epoch": np.int64(4)}
    torch.save(content, tmp_path / "file.pth.tar")
    zoo.load_weights(blank, tmp_path / "file.pth.tar")
    assert same(blank, state)
    assert read_checkpoint(tmp_path / "file.pth.tar")["args"] == args


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors", "old.pth"])
def test_formats(name, state, blank, tmp_path):
    if name == "file.safetensors":
        safetensors.torch.save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "old.pth")
    zoo.load_weights(blank, tmp_path / name)
    assert same(blank, state)


def test_a_run_folder_is_read_by_its_best_checkpoint(state, blank, tmp_path):
    with pytest.raises(
        zoo.BadWeights, match=r"contains no checkpoint \(best\.ckpt or last\.ckpt\)"
    ):
        zoo.load_weights(blank, tmp_path)
    torch.save(zeros(state), tmp_path / "last.ckpt")
    zoo.load_weights(blank, tmp_path)
    assert not any(p.any() for p in blank.parameters())
    torch.save(state, tmp_path / "best.ckpt")
    zoo.load_weights(blank, tmp_path)
    assert same(blank, state)


def test_checkpoint_path_of_create_model(state, tmp_path):
    torch.save(state, tmp_path / "file.pth")
    assert same(zoo.create_model(NAME, checkpoint_path=str(tmp_path / "file.pth")), state)
    pyramid = zoo.create_model(NAME, features_only=True, checkpoint_path=str(tmp_path / "file.pth"))
    assert all(torch.equal(state[key], value) for key, value in pyramid.state_dict().items())
    peer = zoo.create_model("timm/mobilenetv2_035")
    torch.save({"state_dict": peer.state_dict()}, tmp_path / "peer.pth")
    twin = zoo.create_model("timm/mobilenetv2_035", checkpoint_path=str(tmp_path / "peer.pth"))
    assert same(twin, peer.state_dict())


# --- what does not fit ------------------------------------------------------------------------


def refused(model, state, **kwargs) -> str:
    """Return the message of the refusal; the model must be as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(zoo.BadWeights) as caught:
        zoo.load_weights(model, state, **kwargs)
    assert same(model, before), "nothing may be loaded by half"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_unexpected_or_of_another_shape_is_named(state, blank):
    less = {k: v for k, v in state.items() if k != "stem.conv.weight"}
    assert "missing stem.conv.weight" in refused(blank, less)
    assert "unexpected extra.weight" in refused(blank, {**state, "extra.weight": torch.zeros(1)})
    renamed = {**less, "stem.conv.weigth": state["stem.conv.weight"]}
    message = refused(blank, renamed)
    assert "unexpected stem.conv.weigth (like stem.conv.weight?)" in message
    shape = {**state, "stem.conv.weight": torch.zeros(16, 1, 3, 3)}
    assert "stem.conv.weight is 16x1x3x3, the model has 16x3x3x3" in refused(blank, shape)


def test_not_strict_loads_what_fits_and_says_the_rest(state, blank):
    zoo.load_weights(blank, zeros(state))
    odd = {k: v for k, v in state.items() if k != "stem.conv.weight"}
    odd |= {"head.fc.weight": torch.zeros(7, 1280), "extra": torch.zeros(1)}
    lines = zoo.load_weights(blank, odd, strict=False)
    assert len(lines) == 3
    assert not blank.state_dict()["stem.conv.weight"].any()
    assert not blank.state_dict()["head.fc.weight"].any()
    rest = {k: v for k, v in state.items() if k not in ("stem.conv.weight", "head.fc.weight")}
    assert same(blank, rest)


def test_the_checkpoint_of_another_model_is_told_by_its_first_keys(blank):
    message = refused(blank, shaken("efficientformer_l1").state_dict())
    assert message.startswith("the given state dict does not fit MobileNetV2: missing stem.conv")
    assert "more; unexpected stem.0.conv.weight" in message
    with pytest.raises(zoo.BadWeights, match=r"does not fit FeatureExtractor: missing stem\.conv"):
        zoo.load_weights(
            zoo.create_model(NAME, features_only=True), shaken("efficientformer_l1").state_dict()
        )


def test_another_number_of_classes_is_said_to_be_that(blank):
    message = refused(blank, zoo.create_model(NAME, num_classes=10).state_dict())
    assert "only the classifier: set num_classes as in the file, or strict=False" in message


@pytest.mark.parametrize(
    "source", [{}, {"state": {}}, {0: torch.zeros(1)}, {"n_averaged": torch.zeros(())}]
)
def test_a_dictionary_without_weights(source, blank):
    assert "contains no weights" in refused(blank, source)


@pytest.mark.parametrize("source", [None, 3, [1], nn.Linear(1, 1)])
def test_a_source_that_is_none(source, blank):
    assert "give a file, an address" in refused(blank, source)


# --- files that are damaged, or something else ------------------------------------------------


class Payload:
    """Would run a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_unread(protocol, tmp_path, blank):
    victim, file = tmp_path / "ran", tmp_path / "file.pth"
    for content in (Payload(victim), {"state_dict": {"a": torch.zeros(1)}, "x": Payload(victim)}):
        if protocol is None:
            torch.save(content, file)
        else:
            file.write_bytes(pickle.dumps(content, protocol))
        message = refused(blank, file)
        assert ("more than weights" in message) == (protocol != 4)
        assert ("state_dict()" in message) == (protocol != 4)
        assert "not a checkpoint" in message or protocol != 4
        assert not victim.exists()


def test_a_whole_pickled_model_is_refused(tmp_path, blank):
    torch.save(shaken(NAME), tmp_path / "model.pth")
    assert "more than weights" in refused(blank, tmp_path / "model.pth")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 3, "text"])
def test_what_is_no_dictionary(content, tmp_path, blank):
    torch.save(content, tmp_path / "file.pth")
    assert f"contains a {type(content).__name__}, not" in refused(blank, tmp_path / "file.pth")


OTHER_FILES = {
    "empty.pth": b"",
    "empty.safetensors": b"",
    "page.pth": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "page.safetensors": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "text.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "zip.pth": b"PK\x03\x04" + bytes(100),
    "numbers.pth": pickle.dumps([1, 2, 3]),
    "noise.pth": bytes(range(256)) * 4,
    "noise.safetensors": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files(name, tmp_path, blank):
    (tmp_path / name).write_bytes(OTHER_FILES[name])
    assert str(tmp_path / name) in refused(blank, tmp_path / name)


def test_a_file_that_is_not_there(tmp_path, blank):
    path = tmp_path / "none.pth"
    assert refused(blank, path).startswith(f"{path} does not exist; give a file")
    assert "does not exist" in refused(blank, "ftp://example.org/file.pth")


def damaged(whole: bytes):
    """Cut at many lengths, and with single bytes changed."""
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 0.999):
        yield whole[: max(1, int(len(whole) * share))]
    yield whole[:-1]
    for place in np.linspace(0, len(whole) - 1, 40).astype(int):
        yield whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]


@pytest.mark.parametrize("kind", ["file.pth", "old.pth", "file.safetensors"])
def test_damage_is_one_clear_line_or_harmless(kind, tmp_path):
    tensors = nn.Linear(20, 20).state_dict()
    buffer = io.BytesIO()
    if kind == "file.safetensors":
        buffer.write(safetensors.torch.save(tensors))
    else:
        torch.save(tensors, buffer, _use_new_zipfile_serialization=kind != "old.pth")
    refusals = []
    for content in damaged(buffer.getvalue()):
        (tmp_path / kind).write_bytes(content)
        try:
            zoo.load_weights(nn.Linear(20, 20), tmp_path / kind)
        except zoo.BadWeights as error:
            refusals.append((len(content) < len(buffer.getvalue()), str(error)))
    assert not [text for _, text in refusals if "\n" in text]
    cuts = [text for shortened, text in refusals if shortened]
    assert len(cuts) == 9, "every cut must be noticed"
    assert all("truncated" in text for text in cuts)


def test_a_truncated_file_is_called_so(state, tmp_path, blank):
    for name in ("file.pth", "file.safetensors"):
        path = tmp_path / name
        (safetensors.torch.save_file if "safe" in name else torch.save)(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "truncated" in refused(blank, path)


def test_reading_leaves_what_may_be_unpickled_as_it_was(tmp_path):
    before = list(torch.serialization.get_safe_globals())
    torch.save({"a": torch.zeros(1), "args": argparse.Namespace(a=1)}, tmp_path / "file.pth")
    read_state_dict(tmp_path / "file.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_unwrap_does_not_change_what_it_is_given(state):
    content = {"state_dict": prefixed(state, "module.")}
    keys = list(content["state_dict"])
    assert unwrap(content).keys() == state.keys()
    assert list(content["state_dict"]) == keys


def test_loading_keeps_dtype_and_device_of_the_model(state):
    model = fresh(NAME, torch.float64)
    zoo.load_weights(model, state)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


# --- values that cannot be those of weights ---------------------------------------------------


class Small(nn.Module):
    """A weight, a norm with its statistics and counter, an index table and a mask of infinities."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def small(**changes):
    return {key: changes.get(key.replace(".", "_"), t) for key, t in Small().state_dict().items()}


WEIGHT = torch.ones(2, 2, 1, 1)
REFUSED = {
    "NaN": (small(conv_weight=WEIGHT * torch.nan), "conv.weight contains NaN"),
    "infinite": (small(conv_weight=WEIGHT / 0), "contains infinite values"),
    "NaN in half": (small(conv_weight=(WEIGHT * torch.nan).half()), "contains NaN"),
    "NaN in statistics": (small(norm_running_mean=torch.tensor([0, torch.nan])), "contains NaN"),
    "beyond float32": (small(conv_weight=WEIGHT.double() * 1e300), "beyond the range of float32"),
    "int8": (
        small(conv_weight=WEIGHT.to(torch.int8)),
        "is int8, the model has float32; dequantise",
    ),
    "int64": (small(conv_weight=WEIGHT.long()), "is int64, the model has float32"),
    "bool": (small(conv_weight=WEIGHT.bool()), "is bool, the model has float32"),
    "complex": (small(conv_weight=WEIGHT.to(torch.complex64)), "is complex64"),
    "float8": (small(conv_weight=WEIGHT.to(torch.float8_e4m3fn)), "is float8"),
    "sparse": (small(conv_weight=WEIGHT.to_sparse()), "is sparse"),
    "csr": (small(norm_weight=torch.ones(2), conv_weight=WEIGHT.to_sparse()), "is sparse"),
    "meta": (small(conv_weight=WEIGHT.to("meta")), "is on the meta device"),
    "fractional index": (small(index=torch.arange(4) + 0.5), "values that are no int64"),
    "NaN index": (small(index=torch.full((4,), torch.nan)), "values that are no int64"),
    "complex index": (small(index=torch.arange(4).to(torch.complex64)), "is complex64"),
    "NaN mask": (small(mask=torch.tensor([torch.nan, 0])), "mask contains NaN"),
    "infinite counter": (small(norm_num_batches_tracked=torch.tensor(torch.inf)), "no int64"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("strict", [True, False])
def test_values_that_cannot_be_weights(what, strict, tmp_path):
    state, message = REFUSED[what]
    assert message in refused(Small(), state, strict=strict)


ACCEPTED = {
    "half": small(conv_weight=WEIGHT.half()),
    "bfloat16": small(conv_weight=WEIGHT.bfloat16()),
    "double": small(conv_weight=WEIGHT.double()),
    "a parameter": small(conv_weight=nn.Parameter(WEIGHT)),
    "not contiguous": small(conv_weight=torch.ones(2, 4, 1, 1)[:, ::2]),
    "expanded": small(conv_weight=torch.ones(1).expand(2, 2, 1, 1)),
    "a float counter": small(norm_num_batches_tracked=torch.tensor(7.0)),
    "a small index": small(index=torch.arange(4).to(torch.int16)),
    "the same infinities": small(conv_weight=WEIGHT),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_values_that_can(what):
    model = Small()
    assert zoo.load_weights(model, ACCEPTED[what]) == []
    own = model.state_dict()
    assert all(torch.equal(own[k], t.detach().to(own[k].dtype)) for k, t in ACCEPTED[what].items())


def test_the_number_of_faulty_tensors_is_said():
    state = {key: t * torch.nan for key, t in nn.Linear(2, 2).state_dict().items()}
    assert "weight contains NaN" in refused(nn.Linear(2, 2), state)
    assert "and 1 more tensors" in refused(nn.Linear(2, 2), state)


@pytest.mark.parametrize(
    "source",
    ["", " ", "\0", "a" * 5000, "~nobody_of_that_name/x", "a\nb", b"file.pth", "/dev/null"],
)
def test_sources_that_are_no_path(source, blank):
    refused(blank, source)


def test_arguments_without_effect_and_of_other_types(state, blank, tmp_path):
    with pytest.raises(zoo.BadInput, match="sha256 has no effect"):
        zoo.load_weights(blank, state, sha256="00000000")
    for model in (None, "mobilenetv2_035", [blank]):
        with pytest.raises(zoo.BadInput, match="give a torch.nn.Module"):
            zoo.load_weights(model, state)
    with torch.device("meta"), pytest.raises(zoo.BadInput, match="meta device"):
        zoo.load_weights(nn.Linear(2, 2), nn.Linear(2, 2, device="cpu").state_dict())
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(zoo.BadWeights, match="has sha256"):
        zoo.load_weights(blank, tmp_path / "file.pth", sha256="00000000")


def test_wrappers_of_torch_are_looked_through():
    layer = nn.Linear(2, 2)
    for model in (torch.compile(nn.Linear(2, 2)), nn.DataParallel(nn.Linear(2, 2))):
        assert zoo.load_weights(model, layer.state_dict()) == []
        assert torch.equal(next(model.parameters()), layer.weight)


@pytest.mark.parametrize("key", ["", "a\nb", "\ud800", "k" * 5000])
def test_odd_names_in_a_file_stay_short_and_on_one_line(key, blank):
    message = refused(blank, {key: torch.ones(1)})
    assert len(message) < 500
    message.encode()


def test_branches_inside_themselves_end():
    content: dict = {}
    content["model"] = content
    refused(nn.Linear(2, 2), content)
