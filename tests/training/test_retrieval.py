"""Retrieval: data, loss, metrics, runs, evaluation, export, prediction, errors."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import retrieval
from zoo.command_line.composition import run as run_command
from zoo.data.create import create_datamodule
from zoo.data.retrieval import QUERIES, VIEWS
from zoo.deploy import predict_files
from zoo.deploy.predict import Predictor
from zoo.errors import BadInput
from zoo.training.pair_losses import MultiSimilarity
from zoo.training.retrieval import RetrievalMeter
from zoo.training.tasks import get_task

from .conftest import assert_same_run, checkpoint_of, resume_run

TINY = "simplenet_cifar_310k"
CPU = torch.device("cpu")
SETTINGS = [
    *("model=mixvpr", f"model.encoder={TINY}", "data=photos_retrieval", "data.image_size=32"),
    *("data.train_images=48", "train.batch_size=16", "train.epochs=2", "train.loggers=[csv]"),
    *("train.ema_decay=0.5", "train.ema_warmup=false", "train.lr_base_batch=16"),
]


def build(**kwargs):
    return zoo.create_model("mixvpr", encoder=kwargs.pop("encoder", TINY), **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_command("train", [*SETTINGS, f"train.out={tmp_path_factory.mktemp('retrieval')}"])


def opened(stage="validate", batch_size=16, **keys):
    keys = {"name": "photos_retrieval", "image_size": [32, 48], "train_images": 160} | keys
    data = create_datamodule(keys, batch_size=batch_size)
    data.setup(stage)
    return data


# -- the model ------------------------------------------------------------------------------------


def test_the_model_is_that_of_the_paper():
    torch.manual_seed(0)
    model = build(img_size=(32, 48), channels=6, rows=3, depth=2, mlp_ratio=0.5).eval()
    x = torch.randn(2, 3, 32, 48)
    y = model.encoder(x)[0].flatten(2).double()  # equations 1 to 5
    for mixer in model.double().mixers:
        mean, var = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, unbiased=False)
        z = (y - mean) / (var + 1e-5).sqrt() * mixer.norm.weight + mixer.norm.bias
        z = (z @ mixer.expand.weight.T + mixer.expand.bias).relu()
        y = y + z @ mixer.proj.weight.T + mixer.proj.bias
        assert len(mixer.expand.weight) == round(0.5 * y.shape[2])
    channels, rows = model.channel_proj, model.row_proj
    y = torch.einsum("dc,bcp->bdp", channels.weight, y) + channels.bias[:, None]
    y = torch.einsum("rp,bdp->bdr", rows.weight, y) + rows.bias
    y = y.flatten(1)
    want = y / y.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.float()(x), want.float())
    assert want.shape == (2, model.num_features) == (2, 18)


@pytest.mark.parametrize(
    ("encoder", "size", "stride"),
    [("mobilenetv2_035", 64, 16), ("timm/resnet10t", (64, 96), 16), (TINY, 32, 16)],
)
def test_the_feature_map_is_the_coarsest_up_to_stride_16(encoder, size, stride):
    model = build(encoder=encoder, img_size=size)
    assert model.encoder.feature_info.reduction() == [stride]
    sides = model.img_size
    assert model.row_proj.in_features == math.prod(side // stride for side in sides)


def test_the_size_of_a_backbone_is_that_of_its_published_weights():
    assert build(in_chans=1).img_size == (32, 32)
    with pytest.raises(BadInput, match="32 x 32; set img_size"):
        build()(torch.zeros(1, 3, 32, 40))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": None}, "mixvpr needs a backbone: set encoder"),
        ({"num_classes": 5}, "num_classes=5 has no effect on mixvpr"),
        ({"drop_rate": 0.1}, "drop_rate=0.1 has no effect on mixvpr"),
        ({"width": 3}, "width=3 has no effect on mixvpr"),
        ({"rows": 0}, "rows=0: must be a whole number of at least 1"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 must be a number above 0"),
        ({"stride": 5}, f"stride=5: encoder={TINY} has feature strides 1, 2, 4, 8, 16"),
        ({"img_size": (1, 2, 3)}, "img_size="),
        ({"encoder": "wavemix_sisr_144_4_l1"}, "is for super-resolution"),
        ({"encoder": "sparseformer_v1_tiny"}, "not feature maps, so features_only=True is not"),
        ({"features_only": True}, "features_only=True has no effect on mixvpr"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(BadInput, match=message):
        build(**arguments)


# -- data -----------------------------------------------------------------------------------------


def test_a_training_batch_has_several_views_of_each_of_its_places():
    data = opened("fit")
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [16] * 10
    seen = []
    for images, targets in batches:
        groups = targets[:, 0].reshape(-1, VIEWS)
        assert (groups == groups[:, :1]).all()
        seen += groups[:, 0].tolist()
        assert images.shape[1:] == (3, 32, 48)
        assert len(images.flatten(1).unique(dim=0)) == len(images)
    assert len(set(seen)) == len(seen) == 40


def test_views_are_of_their_place_and_halves_have_no_pixel_in_common():
    data = opened("fit")
    source = data.source("val")
    places = source.num_classes
    assert len(source) == places * (1 + QUERIES)
    assert [source.target(i) for i in (0, places - 1, places, 2 * places + 1)] == [
        (0, 0), (places - 1, 0), (0, 1), (1, 1),
    ]  # fmt: skip
    # A reference is its square of the photograph, resized.
    area, top, left = source.corners[5]
    window = Image.fromarray(source.areas[area]).crop((left + 32, top + 32, left + 64, top + 64))
    reference = np.asarray(source.image(5).resize((32, 32), Image.Resampling.BOX), float)
    assert np.abs(reference - np.asarray(window, float)).mean() < 8
    widths = [area.shape[1] - 64 for area in source.areas]
    train = [area.shape[1] - 64 for area in data.source("train").areas]
    assert [a + b for a, b in zip(widths, train, strict=True)] == [640, 640]


def test_views_depend_on_seed_epoch_and_index_only():
    source = opened("fit").source("train")
    first = np.asarray(source.image(7, 1, 2))
    assert np.array_equal(first, source.image(7, 1, 2))
    others = [source.image(7, 1, 3), source.image(7, 2, 2), source.image(6, 1, 2)]
    assert not any(np.array_equal(first, other) for other in others)


# -- loss and metrics -----------------------------------------------------------------------------


def test_multi_similarity_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(9, 3, dtype=torch.float64), dim=1)
    places = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
    alpha, beta, base, margin = 2.0, 5.0, 0.4, 0.1
    total = 0.0
    s = (x @ x.T).tolist()
    for i in range(9):
        same = [j for j in range(9) if places[j] == places[i] and j != i]
        other = [j for j in range(9) if places[j] != places[i]]
        least = min((s[i][j] for j in same), default=math.inf)
        most = max(s[i][j] for j in other)
        pull = sum(math.exp(-alpha * (s[i][j] - base)) for j in same if s[i][j] < most + margin)
        push = sum(math.exp(beta * (s[i][j] - base)) for j in other if s[i][j] > least - margin)
        total += math.log(1 + pull) / alpha + math.log(1 + push) / beta
    loss = MultiSimilarity(alpha, beta, base, margin)(x, torch.stack([places, places], dim=1))
    assert float(loss) == pytest.approx(total / 9, rel=1e-5)


def test_the_loss_has_gradients_when_no_pair_is_left():
    x = torch.eye(4).requires_grad_()
    for places in ([0, 1, 2, 3], [0, 0, 0, 0]):
        loss = MultiSimilarity()(x, torch.tensor([places, places]).T)
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()


def test_recall_counts_queries_whose_place_is_among_the_nearest():
    meter = RetrievalMeter()
    angles = torch.tensor([0.0, 0.5, 1.0, 1.5, 0.45, 0.6, 1.6])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    targets = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0], [1, 1], [0, 1], [0, 1]])
    meter.update(x[:3], 7 * x[:3], targets[:3])  # lengths have no effect
    meter.update(x[3:], x[3:], targets[3:])
    result = meter.compute()
    # Query 1 is next to its place; the second has it third; the third has it last of four.
    assert result.recall == {1: pytest.approx(1 / 3), 5: 1.0, 10: 1.0}
    assert [row["nearest"] for row in result.rows] == [1, 1, 3]
    only = RetrievalMeter()
    only.update(x[:3], x[:3], targets[:3])
    with pytest.raises(BadInput, match=r"no query in 3 validation images; raise"):
        only.compute()


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_resumes_bit_for_bit(finished, tmp_path):
    content = checkpoint_of(finished)
    assert content["config"]["model"]["img_size"] == content["model"]["img_size"] == [32, 32]
    stopped = run_command("train", [*SETTINGS, f"train.out={tmp_path}", "train.stop_at_epoch=1"])
    assert_same_run(finished, resume_run(stopped))


def test_a_run_is_evaluated_exported_and_searched(finished, tmp_path, capsys):
    report = run_command("eval", [f"weights={finished}", f"out={tmp_path / 'eval'}"])
    assert report["recall_1"] == pytest.approx(checkpoint_of(finished, "best")["progress"]["best"])
    with (tmp_path / "eval" / "queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    hits = sum(row["place"] == row["nearest"] for row in rows)
    assert hits / len(rows) == pytest.approx(report["recall_1"])
    assert (tmp_path / "eval" / "predictions.png").exists()
    run_command("export", [f"weights={finished}", "format=onnx", f"export.out={tmp_path}/m.onnx"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["task"] == "retrieval"
    assert manifest["outputs"][0]["meaning"].startswith("embeddings of length 1")
    again = run_command("eval", [f"artefact={tmp_path}/m.onnx", f"out={tmp_path / 'again'}"])
    assert again["recall_1"] == pytest.approx(report["recall_1"], abs=0.02)
    source = opened().source("val")
    (tmp_path / "gallery").mkdir()
    for number in range(6):
        source.image(number).save(tmp_path / "gallery" / f"{number}.png")
    (tmp_path / "gallery" / "broken.png").write_bytes(b"no picture")
    query = tmp_path / "copy.png"
    source.image(3).save(query)
    (answer,) = zoo.predict(f"{tmp_path}/m.onnx", query, gallery=tmp_path / "gallery", top=2)
    assert [entry["file"] for entry in answer["nearest"]][0] == f"{tmp_path}/gallery/3.png"
    assert answer["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert len(answer["nearest"]) == 2
    assert "broken.png" in capsys.readouterr().err
    predictor = Predictor(f"{tmp_path}/m.onnx")
    predict_files.print_predictions(
        predictor, [f"{tmp_path}/gallery/3.png"], gallery=[f"{tmp_path}/gallery"]
    )
    line = capsys.readouterr().out
    assert line.count(".png ") == 5  # without the picture itself
    with pytest.raises(BadInput, match="give --gallery=<folder"):
        predict_files.print_predictions(predictor, [str(query)])
    with pytest.raises(BadInput, match="no picture that can be used, of 1"):
        list(predict_files.predict(predictor, [query], gallery=[tmp_path / "gallery/broken.png"]))
    with pytest.raises(BadInput, match="--out=x has no effect: .* is a retrieval model"):
        predict_files.print_predictions(predictor, [str(query)], out="x", gallery=[str(query)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.batch_size=10"], "train.batch_size=10 must be a multiple of 4, and at least 8"),
        (["model.num_classes=7"], "model.num_classes=7 has no effect on retrieval"),
        (["train.mixup=0.2"], "train.mixup=0.2 is not supported for retrieval"),
        (["train.label_smoothing=0.1"], "train.label_smoothing=0.1 is not supported"),
        (["train.loss=dice"], "train.loss"),
        (["train.loss_args.alpha=0"], "train.loss_args.alpha=0 must be above 0"),
        (["train.best=top1"], "recall_1"),
        (["data.val_split=0.2"], "data.val_split=0.2 has no effect"),
        (["model.img_size=64"], "images of 32 x 32 pixels do not fit this model"),
    ],
)
def test_settings_that_cannot_work_are_errors(settings, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        run_command("train", [*SETTINGS, f"train.out={tmp_path / 'none'}", *settings])
    assert not (tmp_path / "none").exists()


def test_a_gallery_is_for_retrieval_only():
    class Classes:
        name, manifest = (
            "c",
            {
                "task": "classification",
                "input": {"shape": [1, 3, 8, 8], "size": [3, 8, 8], "dtype": "uint8"},
            },
        )

    with pytest.raises(BadInput, match="--gallery has no effect: c is a classification model"):
        list(predict_files.predict(Predictor(Classes()), [], gallery=[]))


def test_the_task_names_its_metrics():
    task = get_task("retrieval")
    assert task.selectable == ("recall_1", "recall_5", "recall_10")
    assert retrieval.STRIDE == 16
