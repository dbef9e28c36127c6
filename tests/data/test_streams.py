"""WebDataset shards, written by the tests."""

import functools
import gc
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig

pytest.importorskip("webdataset", reason="pip install 'zoo-vision[data]'")
# webdataset does not close the shards that it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
COUNT = 6  # samples of a shard


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def fill(picture, path, first, broken=(), label=lambda i: i % 2):
    with tarfile.open(path, "w") as archive:
        for i in range(first, first + COUNT):
            buffer = io.BytesIO()
            picture(i).save(buffer, "PNG")
            content = buffer.getvalue()
            add(archive, f"{i:04}.png", content[:99] if i in broken else content)
            add(archive, f"{i:04}.cls", str(label(i)).encode())


@pytest.fixture
def write_shard(picture):
    """Return a function that writes a shard of samples, numbered from `first`."""
    return functools.partial(fill, picture)


@pytest.fixture(autouse=True)
def _close_shards():
    yield
    gc.collect()  # while the warnings above are ignored


@pytest.fixture
def shards(tmp_path, write_shard):
    """Write four training and two validation shards of 6 samples, and `_info.json`."""
    splits = {}
    for split, number in (("train", 4), ("val", 2)):
        names = [f"{split}-{s}.tar" for s in range(number)]
        for s, name in enumerate(names):
            write_shard(tmp_path / name, 100 * (split == "val") + COUNT * s)
        splits[split] = {
            "name": split,
            "num_samples": COUNT * number,
            "filenames": names,
            "shard_lengths": [COUNT] * number,
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    return tmp_path


def opened(root, batch_size=4, seed=0, **keys):
    base = {"name": "wds/x", "root": str(root), "num_classes": 2, "image_size": 16}
    keys = base | {"num_workers": 0} | keys
    data = create_datamodule(DataConfig(**keys), batch_size=batch_size, seed=seed)
    data.setup()
    return data


def raises(match, root, **keys):
    with pytest.raises(BadInput, match=match) as hit:
        opened(root, **keys)
    assert "\n" not in str(hit.value)


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_yields_every_sample_once(shards, workers):
    batches = list(opened(shards, num_workers=workers).val_dataloader())
    images = torch.cat([x for x, _ in batches])
    assert images.shape == (2 * COUNT, 3, 16, 16)
    assert images.unique(dim=0).shape[0] == 2 * COUNT
    assert sum(y.sum().item() for _, y in batches) == COUNT


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_repeatable_and_differ(shards, workers):
    data = opened(shards, num_workers=workers)
    first = epoch_of(data, 0)
    assert len(first) == len(data.train_dataloader())
    assert [len(y) for _, y in first] == [4] * len(first)
    assert same(first, epoch_of(data, 0))
    assert same(first, epoch_of(opened(shards, num_workers=workers), 0))
    assert not same(first, epoch_of(data, 1))
    assert not same(first, epoch_of(opened(shards, num_workers=workers, seed=1), 0))


def test_resuming_within_an_epoch(shards):
    data = opened(shards)
    whole = epoch_of(data, 3)
    loader = data.train_dataloader()
    loader.set_epoch(3)
    running = iter(loader)
    next(running), next(running)
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(3)
    assert same(list(resumed), whole[2:])
    resumed.set_epoch(4)
    assert same(list(resumed), epoch_of(data, 4))


def test_ranks_evaluate_every_sample_once(shards, monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr("zoo.data.streams.rank_and_world", lambda r=rank: (r, 3))
        seen += [x for x, _ in opened(shards).val_dataloader()]
    assert torch.cat(seen).unique(dim=0).shape[0] == sum(map(len, seen)) == 2 * COUNT


def test_shards_in_braces_need_no_info_file(shards):
    (shards / "_info.json").unlink()
    keys = {"train_split_name": "train-{0..3}.tar|24", "val_split_name": "val-{0..1}.tar|12"}
    data = opened(shards, **keys)
    assert len(epoch_of(data, 0)) == 6
    raises(
        "the number of samples in split .* is unknown",
        shards,
        **keys | {"val_split_name": "val-{0..1}.tar"},
    )
    missing = keys | {"train_split_name": "train-{0..7}.tar|24"}
    raises("shard .*train-4.tar of split .* does not exist", shards, **missing)


def test_errors(shards, tmp_path):
    raises("needs data.num_classes", shards, num_classes=None)
    raises("data.root=.*absent does not exist", tmp_path / "absent")
    raises("no split 'test': list it in .*_info.json", shards, val_split_name="test")
    raises(
        "names 100,000,000 shards; give at most 1,000,000",
        shards,
        train_split_name="train-{0..99999999}.tar|24",
    )
    raises(
        "the number of samples in split 'train-0.tar.-5' is -5",
        shards,
        train_split_name="train-0.tar|-5",
    )
    raises("has a single class", shards, num_classes=1)
    raises("4 training shards cannot feed 5 loading processes", shards, num_workers=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_out_of_range_raises(shards, write_shard, workers):
    write_shard(shards / "val-1.tar", 106, label=lambda i: i % 3)
    data = opened(shards, num_classes=2, num_workers=workers)
    with pytest.raises(BadInput, match="label 2 in wds/x is outside 0 to 1; .*data.num_classes=2"):
        list(data.val_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_raises_or_is_skipped(shards, write_shard, workers, caplog):
    write_shard(shards / "val-1.tar", 106, broken=(108,))
    data = opened(shards, num_workers=workers)
    with pytest.raises(BadInput, match=r"cannot read sample '0108' of .*val-1.tar \(.+\)"):
        list(data.val_dataloader())
    skipping = opened(shards, num_workers=workers, skip_corrupt=True)
    assert sum(len(y) for _, y in skipping.val_dataloader()) == 2 * COUNT - 1
    if not workers:  # worker processes have their own logs
        assert "skipped: sample '0108'" in caplog.text
        assert "corrupt samples: skipped 1" in caplog.text


def test_a_truncated_shard_raises(shards):
    whole = (shards / "val-0.tar").read_bytes()
    (shards / "val-0.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(BadInput, match="cannot read sample .*val-0.tar"):
        list(opened(shards).val_dataloader())


def test_an_index_that_is_no_table_raises(shards):
    (shards / "_info.json").write_text("[]")
    raises("no split 'train': list it in .*_info.json", shards)


def test_samples_are_upright(tmp_path, picture):
    """timm's reader ignores the EXIF orientation."""
    upright, exif = picture(1, (16, 16)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(4):
            add(archive, f"{i}.png", buffer.getvalue())
            add(archive, f"{i}.cls", b"1")
    names = {"train_split_name": "a.tar|4", "val_split_name": "a.tar|4"}
    data = opened(tmp_path, mean=[0.0] * 3, std=[1.0] * 3, crop_pct=1.0, **names)
    images, _ = next(iter(data.val_dataloader()))
    shown = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(shown, np.asarray(upright))
