"""CIFAR, Pascal VOC and the Oxford-IIIT pets: downloaded and located by torchvision."""

import os
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torchvision import datasets

from zoo.data.boxes import ROW, BoxFiles
from zoo.data.pairs import FilePairs
from zoo.data.sources import Source, check_train_or_val
from zoo.errors import BadInput, first_line
from zoo.images import convert
from zoo.settings import DataConfig

# fmt: off
VOC_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]
# fmt: on
PET_NAMES = ["pet", "background", "border"]  # trimap numbers 1 to 3

# The published split that we use for training and for validation.
_SPLITS = {
    "cifar10": {"train": "train", "val": "test"},
    "cifar100": {"train": "train", "val": "test"},
    "voc": {"train": "train", "val": "val"},
    "voc_detection": {"train": "train", "val": "val"},
    "oxford_pet": {"train": "trainval", "val": "test"},
}
_ERRORS = (RuntimeError, OSError, ValueError, HTTPException)


def open_cifar(cfg: DataConfig, split: str) -> Source:
    """Return a split of CIFAR-10 or CIFAR-100; `val` is the published test split.

    Raises:
        BadInput: The files are missing or incomplete, or there is no such split.
    """
    found = _open(cfg, split)
    images = [convert(Image.fromarray(array), cfg.in_chans) for array in found.data]  # N H W C
    return Source(list(found.targets), len(found.classes), list(found.classes), images)


def open_voc(cfg: DataConfig, split: str) -> FilePairs:
    """Return the images and masks of a split of Pascal VOC 2012.

    Raises:
        BadInput: The files are missing, or there is no such split.
    """
    found = _open(cfg, split)
    return FilePairs(
        found.images,
        found.masks,
        len(VOC_NAMES),
        list(VOC_NAMES),
        cfg.in_chans,
        root=str(_root(cfg)),
    )


def open_voc_boxes(cfg: DataConfig, split: str) -> BoxFiles:
    """Return the images and boxes of a split of Pascal VOC 2012; difficult objects are crowds.

    Raises:
        BadInput: The files are missing or damaged, or there is no such split.
    """
    found = _open(cfg, split)
    files = [str(path) for path in found.targets]
    return BoxFiles(
        found.images,
        [_voc_rows(file) for file in files],
        VOC_NAMES[1:],
        files,
        cfg.in_chans,
        str(_root(cfg)),
    )


def _voc_rows(file: str) -> np.ndarray:
    """Return the boxes in an annotation of Pascal VOC, float32 n 6 (`zoo.data.boxes`)."""
    rows = []
    try:
        for entry in ElementTree.parse(file).getroot().findall("object"):
            number = VOC_NAMES.index(str(entry.findtext("name"))) - 1
            corners = [
                float(str(entry.findtext(f"bndbox/{key}")))
                for key in ("xmin", "ymin", "xmax", "ymax")
            ]
            crowd = float(entry.findtext("difficult") == "1")
            # VOC counts pixels from 1, and the last one is inside the box.
            rows.append([number, corners[0] - 1, corners[1] - 1, corners[2], corners[3], crowd])
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise BadInput(
            f"cannot read the boxes in {file} ({first_line(error)}); restore the file"
        ) from error
    return np.array(rows, np.float32).reshape(-1, ROW)


def open_pets(cfg: DataConfig, split: str) -> FilePairs:
    """Return the photographs and trimaps of a split; `val` is the published test split.

    Raises:
        BadInput: The files are missing, or there is no such split.
    """
    _open(cfg, split)
    folder = _root(cfg) / "oxford-iiit-pet"
    annotations = folder / "annotations"
    listed = annotations / f"{_SPLITS[cfg.name][split]}.txt"
    lines = listed.read_text(encoding="utf-8").splitlines()
    stems = [line.split()[0] for line in lines if line.strip()]
    return FilePairs(
        [str(folder / "images" / f"{stem}.jpg") for stem in stems],
        [str(annotations / "trimaps" / f"{stem}.png") for stem in stems],
        len(PET_NAMES),
        list(PET_NAMES),
        cfg.in_chans,
        first=1,
        root=str(folder),
    )


def download(cfg: DataConfig) -> None:
    """Download a data set unless all of its files exist.

    Several processes may call this at once, also on machines that share the folder: one of them
    downloads while the others wait.

    Raises:
        BadInput: The download failed, or a file is still missing afterwards.
    """
    if _is_complete(cfg):
        return
    root = _root(cfg)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{cfg.name}.lock"):
            if not _is_complete(cfg):
                _construct(cfg, "train", download=True)
    except _ERRORS as error:
        raise BadInput(f"cannot download {cfg.name} to {root}: {first_line(error)}") from error
    if not _is_complete(cfg):
        raise BadInput(
            f"{cfg.name} in {root} is still incomplete after the download; delete its folder there "
            "and start again"
        )


def _is_complete(cfg: DataConfig) -> bool:
    try:
        if cfg.name == "voc_detection":
            files = [f for split in ("train", "val") for f in _both_files(_open(cfg, split))]
            return all(map(os.path.exists, files))
        if cfg.name in ("voc", "oxford_pet"):
            opened = open_voc if cfg.name == "voc" else open_pets
            pairs = [opened(cfg, split) for split in ("train", "val")]
            return all(os.path.exists(path) for p in pairs for path in (*p.images, *p.masks))
        _open(cfg, "val")  # torchvision verifies the checksums of all files
    except (BadInput, OSError):
        return False
    return True


def _both_files(found: Any) -> list[str]:
    return [*found.images, *found.targets]


def _open(cfg: DataConfig, split: str) -> Any:
    """Return torchvision's object for a split of a set that was downloaded before."""
    check_train_or_val(cfg.name, split)
    try:
        return _construct(cfg, split, download=False)
    except _ERRORS as error:
        raise BadInput(
            f"{cfg.name} is missing or incomplete in {_root(cfg)}; download it with "
            "data.download=true, or give its folder as data.root"
        ) from error


def _construct(cfg: DataConfig, split: str, *, download: bool) -> Any:
    root, published = str(_root(cfg)), _SPLITS[cfg.name][split]
    if cfg.name == "voc":
        return datasets.VOCSegmentation(root, "2012", published, download=download)
    if cfg.name == "voc_detection":
        return datasets.VOCDetection(root, "2012", published, download=download)
    if cfg.name == "oxford_pet":
        return datasets.OxfordIIITPet(root, published, "segmentation", download=download)
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[cfg.name]
    return kind(root, train=split == "train", download=download)


def _root(cfg: DataConfig) -> Path:
    return Path(cfg.root).expanduser() if cfg.root else Path(torch.hub.get_dir()) / "datasets"
