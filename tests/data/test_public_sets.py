"""CIFAR and Hugging Face data sets, with files that the tests write."""

import hashlib
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision import datasets as tv

from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.settings import DataConfig

SMALL = {"image_size": 16, "num_workers": 0}


def opened(batch_size=4, **keys):
    data = create_datamodule(DataConfig(**SMALL | keys), batch_size=batch_size)
    data.setup()
    return data


def raises(match, **keys):
    with pytest.raises(BadInput, match=match) as hit:
        opened(**keys)
    assert "\n" not in str(hit.value)


def put(path, content):
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Return a folder with a CIFAR-10 of 12 + 6 images, in the published format."""
    home = tmp_path / tv.CIFAR10.base_folder
    home.mkdir()
    rng = np.random.default_rng(0)

    def part(count):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(count)]}

    names = [f"kind {i}" for i in range(10)]
    monkeypatch.setattr(tv.CIFAR10, "train_list", [put(home / "data_batch_1", part(12))])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [put(home / "test_batch", part(6))])
    file, md5 = put(home / "batches.meta", {"label_names": names})
    meta = {"filename": file, "key": "label_names", "md5": md5}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    return tmp_path


def test_cifar10(cifar10):
    data = opened(name="cifar10", root=str(cifar10))
    assert (len(data.source("train")), len(data.source("val"))) == (12, 6)
    assert data.num_classes == 10
    assert data.class_names[3] == "kind 3"
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(BadInput, match="unknown split 'test' of data set cifar10"):
        data.eval_dataloader("test")


def test_cifar_pixels_are_those_of_the_file(cifar10):
    data = opened(name="cifar10", root=str(cifar10), image_size=32, mean=[0.0] * 3, std=[1.0] * 3)
    raw = tv.CIFAR10(str(cifar10), train=False).data[:4]  # N H W C
    images, _ = next(iter(data.val_dataloader()))
    assert np.array_equal((images * 255).round().permute(0, 2, 3, 1).numpy(), raw)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_raises(tmp_path, name):
    raises(
        f"{name} is missing or incomplete in .*; download it with data.download=true",
        name=name,
        root=str(tmp_path),
    )


def test_damaged_cifar_raises(cifar10):
    (cifar10 / tv.CIFAR10.base_folder / "test_batch").write_bytes(b"cut")
    raises("cifar10 is missing or incomplete in", name="cifar10", root=str(cifar10))


def test_a_failed_download_raises_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tv.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    keys = {"name": "cifar10", "root": str(tmp_path), "download": True}
    raises("cannot download cifar10 to", **keys)
    with pytest.raises(BadInput, match="cannot download cifar10"):
        create_datamodule(keys, batch_size=1).download()


def test_one_of_several_processes_downloads(cifar10, monkeypatch):
    """Threads stand for processes: each opens the lock file on its own."""
    hidden = cifar10 / "hidden"
    (cifar10 / tv.CIFAR10.base_folder).rename(hidden)
    downloads = []

    def fake_download(self):
        downloads.append(self.root)
        time.sleep(0.2)  # without a lock the second one would start now
        hidden.rename(cifar10 / tv.CIFAR10.base_folder)

    monkeypatch.setattr(tv.CIFAR10, "download", fake_download)
    keys = {"name": "cifar10", "root": str(cifar10), "download": True}
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(opened, **keys) for _ in range(2)]:
            assert len(done.result().source("train")) == 12
    assert downloads == [str(cifar10)]


def test_a_complete_set_needs_neither_network_nor_write_access(cifar10, monkeypatch):
    monkeypatch.setattr(tv.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    before = sorted(cifar10.iterdir())
    opened(name="cifar10", root=str(cifar10), download=True)
    assert sorted(cifar10.iterdir()) == before


@pytest.fixture
def hub(picture, tmp_path, monkeypatch):
    """Return a function that writes a data set as parquet files and returns the keys to open it."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="pip install 'zoo-vision[data]'")
    datasets.disable_progress_bars()

    def write(
        splits=("train", "validation"), names=("cat", "dog"), label="label", broken=(), scale=1
    ):
        home = tmp_path / "set"
        for s, split in enumerate(splits):
            cells = []
            for i in range(6):
                file = tmp_path / "x.png"
                picture(10 * s + i).save(file)
                content = file.read_bytes()
                cells.append({"bytes": content[:99] if i in broken else content, "path": None})
            kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
            features = datasets.Features({"image": datasets.Image(), label: kind})
            rows = {"image": cells, label: [i % 2 * scale for i in range(6)]}
            made = datasets.Dataset.from_dict(rows, features=features)
            home.mkdir(exist_ok=True)
            made.to_parquet(home / f"{split}-00000-of-00001.parquet")
        return {"name": f"hfds/{home}", "root": str(tmp_path / "cache")}

    return write


def test_hugging_face_data(hub):
    data = opened(**hub())
    assert data.class_names == ["cat", "dog"]
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, 1, 0, 1]
    assert len(list(data.train_dataloader())) == 1


def test_hugging_face_pixels_equal_the_written_ones(hub, picture):
    keys = {"mean": [0.0] * 3, "std": [1.0] * 3, "image_size": [30, 40], "crop_pct": 1.0}
    images, _ = next(iter(opened(**hub(), **keys).val_dataloader()))
    expected = torch.from_numpy(np.array(picture(10))).permute(2, 0, 1)
    assert torch.equal((images[0] * 255).round().byte(), expected)


def test_hugging_face_data_with_workers_and_a_held_out_share(hub):
    keys = hub(splits=("train",), names=(), label="kind")
    data = opened(
        **keys | {"target_key": "kind", "val_split": 0.34, "num_workers": 2}, batch_size=2
    )
    held = len(data.source("val"))
    assert data.num_classes == 2
    assert data.class_names is None
    assert sum(len(labels) for _, labels in data.val_dataloader()) == held
    assert len(list(data.train_dataloader())) == (6 - held) // 2


def test_hugging_face_errors(hub, tmp_path):
    keys = hub()
    raises(r"cannot open .*set\[test\]", **keys | {"val_split_name": "test"})
    raises(
        "column 'kind' is missing or empty; .* Choices: image, label",
        **keys | {"target_key": "kind"},
    )
    raises("column 'img' is missing or empty", **keys | {"input_key": "img"})
    raises("does not contain class numbers", **keys | {"target_key": "image"})
    raises("cannot open hfds/.*absent", name=f"hfds/{tmp_path / 'absent'}")


def test_class_numbers_without_end_raise(hub):
    keys = hub(names=(), scale=10**12)
    raises("has class numbers up to 1000000000000; set data.target_key", **keys)


def test_a_corrupt_row_raises_or_is_skipped(hub, caplog):
    keys = hub(broken=(2,))
    with pytest.raises(BadInput, match=r"cannot read image row 2 of hfds/.*\[validation\]"):
        list(opened(**keys).val_dataloader())
    data = opened(**keys, skip_corrupt=True)
    assert "corrupt images in split val: skipped 1 of 6" in caplog.text
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 5


@pytest.mark.parametrize("name", ["datasets", "webdataset"])
def test_a_missing_extra_names_the_command(monkeypatch, tmp_path, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    keys = {"name": "hfds/x"} if name == "datasets" else {"name": "wds/x", "num_classes": 2}
    raises(f"needs the package {name}; pip install 'zoo-vision\\[data\\]'", **keys)
