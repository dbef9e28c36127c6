"""Weights from a file are adapted as published ones are, in Python, for timm, and for encoders."""

import logging

import pytest
import timm
import torch
from torch import nn

import zoo
from zoo.command_line import composition
from zoo.fine_tuning import adapted_filters

NAME = "cct_2_3x2_32"
ENCODER = "mobilenetv2_035"


@pytest.fixture(autouse=True)
def lines(caplog):
    caplog.set_level(logging.WARNING, "zoo.weights")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "zoo.weights"]


def saved(model, path):
    torch.save(model.state_dict(), path)
    return str(path)


def shared(model, other, *, but):
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a if not key.startswith(but))


def test_other_classes_and_channels_of_a_file(tmp_path, lines):
    source = zoo.create_model(NAME)
    classes = source.num_classes
    file = saved(source, tmp_path / "a.pth")
    model = zoo.create_model(NAME, num_classes=7, in_chans=1, checkpoint_path=file)
    first = model.first_conv_name()
    assert shared(model, source, but=("head.fc", first))
    weight = source.get_submodule(first).weight
    torch.testing.assert_close(model.get_submodule(first).weight, weight.sum(1, keepdim=True))
    (line,) = lines()
    assert line == (
        f"{file}: classifier {classes} -> 7 starts fresh; filters of the first layer 3 -> 1"
        " channels are summed"
    )


def test_the_number_of_classes_must_be_asked_for(tmp_path, lines):
    file = saved(zoo.create_model(NAME, num_classes=7), tmp_path / "a.pth")
    with pytest.raises(zoo.BadWeights, match="give num_classes=7 as in the file, or num_classes="):
        zoo.create_model(NAME, checkpoint_path=file)
    for classes in (7, 10, 0):  # each advice can be followed
        zoo.create_model(NAME, checkpoint_path=file, num_classes=classes)
    gray = saved(zoo.create_model(NAME, in_chans=1), tmp_path / "b.pth")
    with pytest.raises(zoo.BadWeights, match="x1x3x3, the model has"):
        zoo.create_model(NAME, checkpoint_path=gray)
    assert len(lines()) == 1
    zoo.create_model(NAME, checkpoint_path=gray, in_chans=3)
    assert "1 -> 3 channels are repeated" in lines()[-1]


def test_nothing_is_said_where_nothing_changed(tmp_path, lines):
    model = zoo.create_model(NAME, num_classes=7, in_chans=1)
    again = zoo.create_model(
        NAME, num_classes=7, in_chans=1, checkpoint_path=saved(model, tmp_path / "a.pth")
    )
    assert shared(again, model, but="none")
    assert lines() == []


def test_another_model_is_refused_all_the_same(tmp_path):
    file = saved(zoo.create_model(ENCODER), tmp_path / "a.pth")
    with pytest.raises(zoo.BadWeights, match="does not fit CompactTransformer: missing"):
        zoo.create_model(NAME, num_classes=7, in_chans=1, checkpoint_path=file)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 4), (3, 6), (1, 3), (4, 3), (6, 2)])
def test_adapted_filters_answer_alike_to_gray_images(before, after):
    filters = torch.randn(5, before, 3, 3, dtype=torch.float64)
    found = adapted_filters(filters, after)
    assert found.shape == (5, after, 3, 3)
    if after % before == 0 or after == 1:
        torch.testing.assert_close(found.sum(1), filters.sum(1))
    if before == 3:
        torch.testing.assert_close(found, timm.models.adapt_input_conv(after, filters.clone()))


@pytest.mark.parametrize("features", [False, True])
def test_models_of_timm(features, tmp_path, lines):
    source = timm.create_model("mobilenetv2_035")
    file = saved(source, tmp_path / "a.pth")
    options = {"features_only": True} if features else {"num_classes": 7}
    model = zoo.create_model("timm/mobilenetv2_035", in_chans=4, checkpoint_path=file, **options)
    torch.testing.assert_close(model.conv_stem.weight, adapted_filters(source.conv_stem.weight, 4))
    assert torch.equal(model.bn1.weight, source.bn1.weight)
    assert "3 -> 4 channels are repeated" in lines()[-1]
    with pytest.raises(zoo.BadWeights, match="does not fit"):
        zoo.create_model("timm/resnet10t", features_only=features, checkpoint_path=file)


# --- encoders of decoders -----------------------------------------------------------------------


def unet(**kwargs):
    return zoo.create_model("unet", encoder=ENCODER, decoder_channels=[8, 8, 8, 8, 8], **kwargs)


def test_the_encoder_alone_and_the_whole_model(tmp_path, lines):
    backbone = zoo.create_model(ENCODER, num_classes=10)
    file = saved(backbone, tmp_path / "encoder.pth")
    model = unet(num_classes=4, in_chans=1, checkpoint_path=file)
    pyramid = model.encoder.model.state_dict()
    own = backbone.state_dict()
    assert all(torch.equal(t, own[k]) for k, t in pyramid.items() if k != "stem.conv.weight")
    assert any("filters of the first layer 3 -> 1" in line for line in lines())
    assert lines()[-1] == f"{file}: the encoder is loaded, the rest starts fresh"
    whole = saved(model, tmp_path / "whole.pth")
    again = unet(num_classes=9, in_chans=3, checkpoint_path=whole)
    assert shared(again, model, but=("segmentation_head.0", "encoder.model.stem.conv"))
    assert "classifier 4 -> 9 starts fresh; filters of the first layer 1 -> 3" in lines()[-1]
    with pytest.raises(zoo.BadWeights, match="give num_classes=4 as in the file"):
        unet(in_chans=1, checkpoint_path=whole)
    with pytest.raises(zoo.BadWeights, match="does not fit"):
        unet(checkpoint_path=saved(zoo.create_model(NAME), tmp_path / "other.pth"))


def test_an_encoder_of_timm(tmp_path):
    source = timm.create_model("mobilenetv2_035")
    file = saved(source, tmp_path / "a.pth")
    model = zoo.create_model("unet", encoder="timm/mobilenetv2_035", checkpoint_path=file)
    pyramid = model.encoder.model.state_dict()
    assert torch.equal(pyramid["conv_stem.weight"], source.conv_stem.weight)
    assert torch.equal(pyramid["bn1.weight"], source.bn1.weight)
    deepest = [key for key in pyramid if key.endswith("conv_pwl.weight")][-1]
    own = source.state_dict()
    assert any(torch.equal(pyramid[deepest], t) for k, t in own.items() if "conv_pwl" in k)


# --- timm's own ways ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    peer = timm.create_model("mobilenetv2_035")
    folder = tmp_path_factory.mktemp("published")
    torch.save({"state_dict": peer.state_dict()}, folder / "w.pth")
    torch.save(peer.state_dict(), folder / "pytorch_model.bin")
    return peer.eval(), folder


def by_checkpoint_path(folder, **kwargs):
    return timm.create_model(f"zoo_{ENCODER}", checkpoint_path=str(folder / "w.pth"), **kwargs)


def by_overlay(folder, **kwargs):
    overlay = {"file": str(folder / "w.pth"), "mean": (0.5, 0.5, 0.5)}
    return timm.create_model(
        f"zoo_{ENCODER}", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
    )


def by_cfg(folder, **kwargs):
    cfg = {"state_dict": torch.load(folder / "w.pth")["state_dict"]}
    return timm.create_model(f"zoo_{ENCODER}", pretrained=True, pretrained_cfg=cfg, **kwargs)


def by_folder(folder, **kwargs):
    cfg = {"source": "local-dir", "file": str(folder)}
    return timm.create_model(f"zoo_{ENCODER}", pretrained=True, pretrained_cfg=cfg, **kwargs)


@pytest.mark.parametrize("way", [by_checkpoint_path, by_overlay, by_cfg, by_folder])
def test_timm_loads_local_weights_into_our_model(way, published):
    peer, folder = published
    model = way(folder).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), peer(x))
    pyramid = way(folder, features_only=True)
    assert torch.equal(pyramid.stem.conv.weight, peer.conv_stem.weight)
    if way is not by_checkpoint_path:  # timm's own way is as strict with its own models
        fresh = way(folder, num_classes=5, in_chans=1)
        assert torch.equal(fresh.stem.norm.weight, peer.bn1.weight)
        assert fresh.head.fc.weight.shape[0] == 5
    if way is by_overlay:
        assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
        assert timm.data.resolve_model_data_config(model)["mean"] == (0.5, 0.5, 0.5)


def test_what_timm_was_given_is_not_ignored(published, tmp_path):
    create = timm.create_model
    for cfg in ({"file": "none.pth"}, {"url": "https://127.0.0.1:9/x.pth"}, {"hf_hub_id": "a/b@c"}):
        with pytest.raises(zoo.BadWeights, match=r"none\.pth|127|revisions"):
            create(f"zoo_{ENCODER}", pretrained=True, pretrained_cfg_overlay=cfg)
    with pytest.raises(zoo.BadWeights, match="contains neither"):
        create(f"zoo_{ENCODER}", pretrained=True,
               pretrained_cfg={"source": "local-dir", "file": str(tmp_path)})  # fmt: skip
    with pytest.raises(zoo.BadInput, match="feature_cls has no effect"):
        create(f"zoo_{ENCODER}", features_only=True, feature_cls="hook")
    with pytest.raises(zoo.UnknownModel, match="unknown tag 'no'"):
        create("zoo_mobilenetv2_100.no", pretrained=True)


def test_a_bridged_model_inside_another_module_takes_published_names(published):
    peer, _ = published
    outer = nn.Sequential(nn.Identity(), timm.create_model(f"zoo_{ENCODER}"))
    state = {f"1.{key}": t for key, t in peer.state_dict().items()}
    assert outer.load_state_dict(state).missing_keys == []
    assert torch.equal(outer[1].stem.conv.weight, peer.conv_stem.weight)
    outer.load_state_dict(outer.state_dict())


# --- the command line ---------------------------------------------------------------------------

TINY = (
    *("train.epochs=1", "train.limit_train_batches=1", "train.limit_val_batches=1"),
    *("train.batch_size=4", "data.num_workers=0", "train.warmup_epochs=0", "train.progress=false"),
    *("train.accelerator=cpu", "train.loggers=[]"),
)


def test_training_from_a_file_and_from_a_run(tmp_path, lines):
    file = saved(zoo.create_model("simplenet_cifar_310k", num_classes=100), tmp_path / "a.pth")
    run = ["model=simplenet_cifar_310k", *TINY, f"train.out={tmp_path / 'runs'}"]
    result = composition.run("train", [*run, f"model.checkpoint_path={file}"])
    assert any("classifier 100 -> 10 starts fresh" in line for line in lines())
    with pytest.raises(zoo.BadWeights, match="another number of classes than the data"):
        composition.run(
            "eval", ["model=simplenet_cifar_310k", "data=digits", f"model.checkpoint_path={file}"]
        )
    assert result is not None
