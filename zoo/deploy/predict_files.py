"""Predict for image files: list them, write masks and drawings, and print what was found."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.deploy import box_drawing
from zoo.deploy.gallery import Gallery
from zoo.deploy.predict import Predictor, PreparedImage
from zoo.errors import BadInput
from zoo.images import OTHER_FORMATS

FOLDERS = {"segmentation": "masks", "detection": "detections"}  # of pictures, for each task
OPACITY = 0.5  # opacity of a mask drawn over its image


def predict(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    batch_size: int = 8,
    top: int = 5,
    out: Path | None = None,
    gallery: Sequence[Path] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the prediction for each file, in order, as a dictionary.

    Args:
        predictor: A loaded artefact or model.
        paths: Image files.
        batch_size: Images per call.
        top: Classes, or nearest pictures, to return per image.
        out: Folder for masks and overlays, created if needed; only for `FOLDERS`. None: none.
        gallery: Image files to search; for retrieval, and only for it.

    Yields:
        `file` and `classes` (with `probability`, or `share` of the pixels), `detections` (with
        `score` and `box`: x1 y1 x2 y2 in pixels) or `nearest` (with `file` and `similarity`), and
        the paths `mask` and `overlay` if they were written; `file` and `error` for a file without a
        prediction.

    Raises:
        BadInput: `batch_size` or `top` is less than 1, the runtime fails, or `out` cannot be
            written.
    """
    for name, value in (("batch", batch_size), ("top", top)):
        if value < 1:
            raise BadInput(f"--{name}={value} must be at least 1")
    searched = _searched(predictor, gallery, batch_size)
    for begin in range(0, len(paths), batch_size):
        prepared: list[PreparedImage | BadInput] = []
        for path in paths[begin : begin + batch_size]:
            try:
                prepared.append(predictor.prepare(path))
            except BadInput as error:
                prepared.append(error)
        batch = [item for item in prepared if isinstance(item, PreparedImage)]
        outputs = iter(predictor(batch) if batch else ())
        for path, item in zip(paths[begin : begin + batch_size], prepared, strict=True):
            answer: dict[str, Any] = {"file": str(path)}
            if isinstance(item, BadInput):
                yield answer | {"error": str(item)}
            else:
                yield answer | _interpret(predictor, item, next(outputs), top, out, searched)


def _searched(
    predictor: Predictor, paths: Sequence[Path] | None, batch_size: int
) -> Gallery | None:
    """Return the gallery of a model for retrieval, and None for any other model.

    Raises:
        BadInput: There is no gallery, or it has no effect.
    """
    if predictor.task != "retrieval":
        if paths is not None:
            raise BadInput(
                f"--gallery has no effect: {predictor.source.name} is a {predictor.task} model;"
                " leave it out"
            )
        return None
    if paths is None:
        raise BadInput(
            f"{predictor.source.name} is a retrieval model: give --gallery=<folder of the pictures"
            " to search>"
        )
    return Gallery(predictor, paths, batch_size)


def _interpret(
    predictor: Predictor,
    prepared: PreparedImage,
    output: np.ndarray,
    top: int,
    out: Path | None,
    gallery: Gallery | None,
) -> dict[str, Any]:
    """Return the classes in the output for one image; write its mask if requested."""
    if not np.isfinite(output).all():
        return {
            "error": f"the outputs for {prepared.path} are not finite (nan or inf), so there is no "
            "prediction; export weights that are finite"
        }
    if predictor.task in ("classification", "multi-label"):
        return {"classes": predictor.classify(output, top)}
    if predictor.task == "detection":
        return _list_detections(predictor, prepared, output, out)
    if gallery is not None:
        return {"nearest": gallery.nearest(output, prepared.path, top)}
    mask = predictor.segment(output, prepared)
    found, counts = np.unique(mask, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = [
        {
            "class": int(found[i]),
            "name": predictor.class_name(int(found[i])),
            "share": float(counts[i] / mask.size),
        }
        for i in order
    ]
    return {"classes": shares} | ({} if out is None else _write_masks(prepared, mask, out))


def _list_detections(
    predictor: Predictor, prepared: PreparedImage, output: np.ndarray, out: Path | None
) -> dict[str, Any]:
    """Return the detections in the output for one image; draw them if requested."""
    found = predictor.detect(output, prepared)
    shown = np.flatnonzero(found.scores >= box_drawing.SHOWN_SCORE)
    corners = found.boxes * (prepared.size * 2)
    listed = [
        {
            "class": int(found.classes[i]),
            "name": predictor.class_name(int(found.classes[i])),
            "score": float(found.scores[i]),
            "box": [round(float(x), 2) for x in corners[i]],
        }
        for i in shown
    ]
    if out is None:
        return {"detections": listed}
    assert prepared.original is not None
    names = predictor.manifest["class_names"]
    picture = box_drawing.draw(prepared.original, found, names)
    return {"detections": listed, **_write_pictures(prepared, out, {"overlay": picture})}


def _write_masks(prepared: PreparedImage, mask: np.ndarray, out: Path) -> dict[str, str]:
    """Write the mask and its overlay as PNG to the folder `out`; return their paths."""
    assert prepared.original is not None
    dtype = np.uint8 if mask.max() < 256 else np.uint16
    pictures = {
        "mask": Image.fromarray(mask.astype(dtype)),
        "overlay": overlay(prepared.original, mask),
    }
    return _write_pictures(prepared, out, pictures)


def _write_pictures(
    prepared: PreparedImage, out: Path, pictures: dict[str, Image.Image]
) -> dict[str, str]:
    """Write pictures of one image as PNG to the folder `out`; return their paths by kind."""
    # The suffix is part of the name, so that a.png and a.jpg do not share a picture.
    name = prepared.path.name.replace(".", "_")
    written = {kind: out / f"{name}_{kind}.png" for kind in pictures}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for kind, picture in pictures.items():
            picture.save(written[kind])
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error.strerror or error}") from error
    return {kind: str(file) for kind, file in written.items()}


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Draw a mask (H W, classes) over its image; class 0 is transparent."""
    painted = class_colours(int(mask.max()) + 1)[mask]
    base = np.asarray(image.convert("RGB"), np.float32)
    mixed = np.where(mask[..., None] > 0, (1 - OPACITY) * base + OPACITY * painted, base)
    return Image.fromarray(mixed.round().astype(np.uint8))


def class_colours(count: int) -> np.ndarray:
    """Return distinct colours for `count` classes: count x 3, uint8, the first is black."""
    numbers = np.arange(count)
    channels = [
        sum(((numbers >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for channel in range(3)
    ]
    return np.stack(channels, axis=1).astype(np.uint8)


def list_images(paths: Sequence[str]) -> list[Path]:
    """Replace each folder in `paths` by the files in it.

    Hidden files are left out, and images of formats that no training takes, with a warning. A file
    that is named itself is always in the result.

    Raises:
        BadInput: A folder contains no file, or cannot be read.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if not given.is_dir():
            found.append(given)
            continue
        try:
            inside = sorted(f for f in given.iterdir() if f.is_file() and f.name[0] != ".")
        except OSError as error:
            raise BadInput(f"cannot read folder {str(given)!r}: {error.strerror}") from error
        others = Counter(f.suffix.lower() for f in inside if f.suffix.lower() in OTHER_FORMATS)
        inside = [f for f in inside if f.suffix.lower() not in OTHER_FORMATS]
        if others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
            print(
                f"warning: {given}: left out images of other formats ({kinds}); convert them to "
                "jpg or png to use them",
                file=sys.stderr,
            )
        if not inside:
            raise BadInput(f"folder {str(given)!r} contains no file")
        found += inside
    return found


def print_predictions(
    predictor: Predictor,
    images: Sequence[str],
    *,
    as_json: bool = False,
    batch_size: int = 8,
    top: int = 5,
    out: str | None = None,
    gallery: Sequence[str] | None = None,
) -> None:
    """Print the prediction for each image when it is known, and errors to standard error.

    Args:
        predictor: A loaded artefact or model.
        images: Files, and folders of files.
        as_json: Print a JSON array with one element per line.
        batch_size: As for `predict`.
        top: As for `predict`.
        out: Folder for pictures; None: that of `FOLDERS`.
        gallery: Files, and folders of files, to search; for retrieval, and only for it.

    Raises:
        BadInput: A folder cannot be used, or (at the end) a file has no prediction.
    """
    paths = list_images(images)
    searched = None if gallery is None else list_images(gallery)
    if out and predictor.task not in FOLDERS:
        raise BadInput(
            f"--out={out} has no effect: {predictor.source.name} is a {predictor.task} model;"
            " leave it out"
        )
    folder = Path(out or FOLDERS[predictor.task]) if predictor.task in FOLDERS else None
    count = failed = 0
    options: dict[str, Any] = {"batch_size": batch_size, "top": top, "gallery": searched}
    answers = predict(predictor, paths, out=folder, **options)
    try:
        for count, answer in enumerate(answers, start=1):
            if as_json:
                print(("[" if count == 1 else ",\n ") + _encoded(answer), end="", flush=True)
            elif "error" not in answer:
                print(_line(answer), flush=True)
            if "error" in answer:
                failed += 1
                print(f"error: {answer['error']}", file=sys.stderr, flush=True)
    finally:
        if as_json and count:
            print("]")
    if failed:
        raise BadInput(f"{failed} of {len(paths)} files have no prediction")


def _encoded(answer: dict[str, Any]) -> str:
    """Return a prediction as JSON that the terminal can show."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return json.dumps(answer, ensure_ascii=not is_unicode)


def _line(answer: dict[str, Any]) -> str:
    """Return a prediction as a line of text."""
    if "detections" in answer:
        parts = [
            f"{entry['name']} {entry['score']:.1%} at {' '.join(f'{x:.0f}' for x in entry['box'])}"
            for entry in answer["detections"]
        ] or ["nothing found"]
    elif "nearest" in answer:
        parts = [f"{entry['file']} {entry['similarity']:.3f}" for entry in answer["nearest"]]
        parts = parts or ["the gallery has no other picture"]
    else:
        parts = [
            f"{entry['name']} {entry.get('probability', entry.get('share')):.1%}"
            for entry in answer["classes"]
            if entry.get("predicted", True)
        ] or ["no label"]
    drawn = f" -> {answer['overlay']}" if "overlay" in answer else ""
    return f"{answer['file']}: {', '.join(parts)}{drawn}"
