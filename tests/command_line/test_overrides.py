"""Settings on the command line: text is taken literally, and each mistake names its key."""

import shlex

import pytest

from zoo.command_line.composition import compose, parse
from zoo.command_line.overrides import read
from zoo.errors import BadInput, UnknownModel


@pytest.mark.parametrize(
    "text",
    [
        "epoch=3-step=100.ckpt",
        "runs (9)/a,b",
        "lr=0.1",
        "[x]",
        "{x}",
        "1e5",
        "007",
        "12",
        "true",
        "ümlaut/日本 und",
        "it's",
        'a"b"',
        "a:b;c",
        "C:\\photos",
        "#1",
        "~/runs",
        "$HOME/x",
        "choice(1,2)",
        "range(3)",
        "a b",
    ],
)
@pytest.mark.parametrize("key", ["weights", "data.root", "out"])
def test_text_is_taken_literally(key, text):
    settings, explicit = parse("eval", [f"{key}={text}"])
    group, _, name = key.rpartition(".")
    assert getattr(getattr(settings, group) if group else settings, name) == text
    assert explicit == {key: text}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("weights='a=b'", "a=b"),
        ('weights="a=b"', "a=b"),
        ("weights=null", None),
        ("weights=${data.name}", "digits"),
        ("++weights=a=b", "a=b"),
    ],
)
def test_what_is_written_for_hydra_keeps_its_meaning(word, value):
    assert parse("eval", [word])[0].weights == value


def test_lists_of_jobs_are_lists_only_in_a_multirun():
    assert read("train", ["train.out=a,b"]) == ["train.out='a,b'"]
    assert read("train", ["train.out=a,b"], sweep=True) == ["train.out=a,b"]
    assert read("train", ["model=emo_1m,emo_2m"], sweep=True) == ["model=emo_1m,emo_2m"]
    assert read("train", ["train.lr=1,2"], sweep=True) == ["train.lr=1,2"]
    with pytest.raises(
        BadInput, match=r"^train.lr=1,2: several values need train.sweep=<folder> or the flag --mul"
    ):
        read("train", ["train.lr=1,2"])
    with pytest.raises(BadInput, match=r"^train.epochs: '1,x' is not a whole number"):
        read("train", ["train.epochs=1,x"], sweep=True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epochs=x", "train.epochs: 'x' is not a whole number"),
        ("train.epochs=1.5", "train.epochs: '1.5' is not a whole number"),
        ("train.epochs=1e3", "train.epochs: '1e3' is not a whole number"),
        ("train.epochs=null", "train.epochs: null is not a whole number"),
        ("train.epochs=true", "train.epochs: 'true' is not a whole number"),
        ("train.epochs=", "train.epochs: '' is not a whole number"),
        ("train.epochs=[1]", "train.epochs: '[1]' is not a whole number"),
        ("train.stop_at_epoch=x", "train.stop_at_epoch: 'x' is not a whole number or null"),
        ("train.lr=fast", "train.lr: 'fast' is not a number"),
        ("train.qat=maybe", "train.qat: 'maybe' is not true or false"),
        ("data.mean=0.5", "data.mean: '0.5' is not a list such as [0.5,0.5] or null"),
        ("data.mean=[a,b,c]", "data.mean: '[a,b,c]' is not a list such as [0.5,0.5] or null"),
        ("train.loggers=csv", "train.loggers: 'csv' is not a list such as [a,b]"),
        ("model.kwargs=3", "model.kwargs: '3' is not a dictionary such as {key:1}"),
        ("train=fast", "train=fast: train is a group of settings; set one of them, such as "),
        ("train={epochs:x}", "train.epochs: 'x' is not a whole number"),
        ("train={epoch:1}", "unknown key 'train.epoch' of zoo train; did you mean 'train.epochs'?"),
        ("train.epochs=(3", "train.epochs=(3 is not in Hydra's grammar; quote it: "),
        ("train.lr=nan", "train.lr=nan must be a finite number"),
        ("data.ratio=[1,inf]", "data.ratio=inf must be a finite number"),
        ("train.out=${nothing}", "train.out: Interpolation key 'nothing' not found"),
        ("train.out=${oc.env:NO_SUCH_VARIABLE}", "train.out: "),
        ("train.out=${", ""),
        ("~train.lr", "~train.lr: settings cannot be removed; set another value: train.lr=<value>"),
        ("emo_1m", "'emo_1m' is not a setting; did you mean model=emo_1m?"),
        ("epochs", "'epochs' is not a setting; did you mean train.epochs=<value>?"),
        ("train.epochs", "'train.epochs' has no value; give train.epochs=<value>"),
        ("=3", "'=3' is not a setting"),
        ("", "'' is not a setting"),
        ("epochs=3", "unknown key 'epochs' of zoo train; did you mean 'train.epochs'?"),
        ("batch-size=3", "unknown key 'batch-size' of zoo train; did you mean 'train.batch_size'?"),
        ("weights=x", "unknown key 'weights' of zoo train"),
        ("data=flder", "unknown data 'flder'; did you mean 'folder'? Choices: cifar10, cifar100,"),
        ("data=[a,b]", "unknown data '[a,b]'"),
        ("experiment=x", "unknown experiment 'x'. Choices: efficientformer_l1_imagenet"),
        ("model=", "model is empty; give model=<value>"),
        ("train.out=", "train.out is empty; give train.out=<value> or null"),
        ("data@x=digits", "unknown key 'data@x' of zoo train; did you mean 'data'?"),
        ("recipe=digits_segmentation", "unknown key 'recipe' of zoo train"),
        ("model.kwargs.x=(", "model.kwargs.x=( is not in Hydra's grammar; quote it: "),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(word, message):
    with pytest.raises(BadInput) as error:
        parse("train", [word])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert "hydra.cc" not in str(error.value)


def test_a_group_is_given_once():
    with pytest.raises(BadInput, match="data is given twice: digits and folder; keep one of them"):
        parse("train", ["data=digits", "data=folder"])


@pytest.mark.parametrize("name", ["emo(1)", "a=b", "nothing", "12"])
def test_a_model_with_any_name_is_unknown(name):
    with pytest.raises(UnknownModel):
        compose("train", [f"model={name}"])


def test_the_printed_way_to_quote_works():
    with pytest.raises(BadInput) as error:
        parse("train", ["model.kwargs.x=a(b"])
    word = shlex.split(str(error.value).partition("quote it: ")[2])[0]
    assert parse("train", [word])[0].model.kwargs == {"x": "a(b"}
