"""`zoo store-logits`: store a teacher's predictions for every augmented training image."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.commands import resolve
from zoo.commands.devices import find_device
from zoo.data.create import create_datamodule
from zoo.data.datamodule import ImageData
from zoo.errors import BadInput
from zoo.factory import create_model
from zoo.inputs import published_statistics
from zoo.merging import identity
from zoo.progress import phase, track
from zoo.quoting import command_line
from zoo.settings import StoreRun
from zoo.training import logit_store, run_folder
from zoo.training.builders import check_forward, renormalization
from zoo.training.checks import check_value
from zoo.training.disk import sole_writer
from zoo.training.logit_store import LogitStore
from zoo.weights import load_content


def run(settings: StoreRun, explicit: resolve.Explicit) -> Path:
    """Store the missing epochs, and print the size of the store and the next command.

    Args:
        settings: The settings of `zoo store-logits`.
        explicit: Keys that the user set.

    Returns:
        The folder of the store.

    Raises:
        ZooError: A setting is invalid, the teacher does not fit the data, or `out` has a store of
            something else.
    """
    for key in ("epochs", "batch_size"):
        check_value(key, getattr(settings, key), getattr(settings, key) >= 1, "at least 1")
    check_value("seed", settings.seed, 0 <= settings.seed < 2**32, "between 0 and 2**32 - 1")
    folder = Path(settings.out).expanduser()
    run_folder.check_writable(folder, "out")
    device = find_device(settings.device)
    with phase("reading the weights"):
        saved = resolve.read_command_weights(settings)
    if saved is None and not settings.model.pretrained:
        raise BadInput(
            "a teacher needs trained weights; give weights=<run folder or file>, or"
            " model.pretrained=true"
        )
    with phase("opening the data"):
        data = create_datamodule(settings.data, batch_size=settings.batch_size, seed=settings.seed)
        data.setup("fit")
        described = logit_store.describe(data, settings.seed)
    top = data.num_classes if settings.top is None else settings.top
    check_value("top", top, 1 <= top <= data.num_classes, f"between 1 and {data.num_classes}")
    with phase("building the teacher"):
        teacher, about, normalize = _teacher(settings, saved, data)
    teacher = teacher.eval().to(device)
    store = LogitStore.create(folder, described, about, top=top, half=settings.half)
    with sole_writer(folder, "storing logits"):
        start, before = time.perf_counter(), store.epochs
        loader = data.ordered_dataloader()
        for epoch in range(before, settings.epochs):
            loader.load_state_dict({"epoch": epoch, "batch": 0})
            name = f"epoch {epoch + 1}/{settings.epochs}, batches"
            batches = track(loader, name, len(loader))
            store.write(epoch, _predictions(teacher, batches, normalize, device))
        seconds = time.perf_counter() - start
    added = store.epochs - before
    size = sum(store.path(epoch).stat().st_size for epoch in range(store.epochs))
    print(
        f"{store.epochs} epochs of {store.images} images in {folder}: {size / 2**20:.1f} MiB,"
        f" {store.row.itemsize} bytes an image; {added} added in {seconds:.0f} s"
    )
    student = {"train.distill": "stored", "train.distill_store": folder}
    student |= {"train.seed": settings.seed, "train.epochs": store.epochs}
    print(f"next: {command_line('train', student)} with the same settings of data")
    return folder


def _teacher(
    settings: StoreRun, saved: resolve.SavedWeights | None, data: ImageData
) -> tuple[nn.Module, dict[str, Any], Any]:
    """Return the teacher, what identifies it, and a function to its normalisation, or None."""
    if saved is not None and saved.is_qat:
        raise BadInput(f"{saved.source} comes from train.qat; give the float run as the teacher")
    arguments = resolve.model_arguments(settings.model)
    arguments = {k: v for k, v in arguments.items() if k not in ("checkpoint_path", "base")}
    if saved is not None and saved.is_run:
        arguments = dict(saved.model)
    arguments["in_chans"] = data.in_chans
    if saved is not None:
        arguments["num_classes"] = data.num_classes
    model: Any = create_model(**arguments)
    name = arguments["name"]
    if saved is not None:
        advice = f"the teacher must be trained on the {data.num_classes} classes of the data"
        load_content(model, saved.content, saved.source, advice=advice)
    if getattr(model, "num_classes", data.num_classes) != data.num_classes:
        raise BadInput(
            f"the teacher {name} has {model.num_classes} classes, but the data has"
            f" {data.num_classes}; give weights=<run> trained on this data"
        )
    check_forward(model, name, data)
    own = published_statistics(name)
    if saved is not None and saved.is_run:
        own = saved.preprocessing["mean"], saved.preprocessing["std"]
    about = {"name": name, "sha256": identity(model.state_dict())}
    return model, about, renormalization((data.mean, data.std), (list(own[0]), list(own[1])))


def _predictions(
    teacher: nn.Module, batches: Any, normalize: Any, device: torch.device
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield the numbers of the images of each batch, and the teacher's logits."""
    done = 0
    for images, _ in batches:
        with torch.inference_mode():
            images = images if normalize is None else normalize(images)
            logits = teacher(images.to(device))
        yield range(done, done + len(images)), logits.float().cpu()
        done += len(images)
